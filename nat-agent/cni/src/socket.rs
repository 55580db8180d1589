//! The plugin's side of the agent's socket.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::protocol::{Answer, LONGEST, Question, Request, VERSION};

/// Between attempts to connect: an agent that is restarted is back within seconds.
const PAUSE: Duration = Duration::from_millis(100);
/// The agent answers when the time is over, if it had nothing to say before; it needs a moment for that.
const GRACE: Duration = Duration::from_secs(2);

/// Asks the agent, and again while it is away, until the time is over.
///
/// # Errors
/// The last one, if the agent did not answer.
pub fn ask(socket: &Path, question: &Question, patience: Duration) -> io::Result<Answer> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match ask_once(socket, question, left) {
            Err(_) if deadline.saturating_duration_since(Instant::now()) > PAUSE => sleep(PAUSE),
            result => return result,
        }
    }
}

/// Asks the agent if it is there.
///
/// # Errors
/// It is not, or did not answer within `patience` and a moment.
pub fn ask_once(socket: &Path, question: &Question, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patience + GRACE))?;
    stream.set_read_timeout(Some(patience + GRACE))?;
    let request = Request {
        version: VERSION,
        patience: patience.as_millis() as u64,
        question: question.clone(),
    };
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
