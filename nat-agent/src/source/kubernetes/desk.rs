//! Where the CNI plugin asks: a socket of the node, for root alone. Each question waits here until
//! what it asks for is in force, or its time is over.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nat_cni::protocol::{Answer, Attachment, LONGEST, Question, Request, VERSION};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{arrivals::Arrivals, watch::Shared};

/// Nobody waits longer, whatever the plugin says.
const PATIENCE: Duration = Duration::from_secs(120);
/// A plugin says what it wants at once.
const QUICK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// A question that waits for its answer.
struct Waiting {
    question: Question,
    /// What it waits for, or that it is done.
    answer: watch::Sender<Answer>,
}

/// New questions, and how to wake the one who answers them.
#[derive(Clone)]
struct Inbox {
    questions: Arc<Mutex<Vec<Waiting>>>,
    shared: Shared,
}

/// The socket, and who waits at it.
pub struct Desk {
    socket: PathBuf,
    inbox: Inbox,
    waiting: Vec<Waiting>,
    listener: Option<JoinHandle<()>>,
    problem: Option<String>,
}

impl Desk {
    /// A desk that is not open yet.
    pub fn new(socket: &Path, shared: &Shared) -> Self {
        Self {
            socket: socket.to_owned(),
            inbox: Inbox {
                questions: Arc::default(),
                shared: shared.clone(),
            },
            waiting: Vec::new(),
            listener: None,
            problem: None,
        }
    }

    /// Opens it, if it is not open. Call within a tokio runtime.
    pub fn open(&mut self) {
        if self.listener.is_some() {
            return;
        }
        match listen(&self.socket) {
            Ok(listener) => {
                self.listener = Some(tokio::spawn(accept(listener, self.inbox.clone())));
                self.problem = None;
            }
            Err(error) => {
                self.problem = Some(format!(
                    "no new pod can start: cannot listen at {} for the CNI plugin: {error}",
                    self.socket.display()
                ));
            }
        }
    }

    /// Why it is not open.
    pub fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// Takes new questions in, and what they say of pods.
    pub fn take(&mut self, arrivals: &mut Arrivals, now: Duration) {
        let new = std::mem::take(&mut *self.inbox.lock());
        for waiting in new {
            match &waiting.question {
                Question::Add(attachment) => arrivals.add(attachment.clone(), now),
                Question::Del(container) => {
                    arrivals.withdraw(container);
                    let _ = waiting.answer.send(Answer::Done(None));
                    continue;
                }
                Question::Check(_) | Question::Status => {}
            }
            self.waiting.push(waiting);
        }
    }

    /// The pods that wait, by `namespace/name`.
    pub fn pods(&self) -> BTreeSet<String> {
        let attachments = self.waiting.iter().filter_map(Waiting::attachment);
        attachments.map(Attachment::path).collect()
    }

    /// Answers those who can be answered, and notes what the others wait for.
    pub fn answer(&mut self, readiness: impl Fn(&Attachment) -> Result<Option<String>, String>) {
        self.waiting.retain(|waiting| {
            let ready = waiting.attachment().map_or(Ok(None), &readiness);
            let done = ready.is_ok();
            let answer = ready.map_or_else(Answer::NotDone, Answer::Done);
            let heard = waiting.answer.send(answer).is_ok();
            heard && !done
        });
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.listener.iter().for_each(JoinHandle::abort);
    }
}

impl Waiting {
    const fn attachment(&self) -> Option<&Attachment> {
        match &self.question {
            Question::Add(attachment) | Question::Check(attachment) => Some(attachment),
            Question::Del(_) | Question::Status => None,
        }
    }
}

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the answer to a question; when the time is over, it is what was waited for.
    async fn ask(&self, question: Question, patience: Duration) -> Answer {
        let busy = "nat-agent is busy and has not come to it yet".to_owned();
        let (answer, mut answered) = watch::channel(Answer::NotDone(busy));
        self.lock().push(Waiting { question, answer });
        self.shared.wake();
        let done = answered.wait_for(|answer| matches!(answer, Answer::Done(_)));
        let _ = timeout(patience.min(PATIENCE), done).await;
        answered.borrow().clone()
    }
}

/// A socket for root alone, in the place of what an agent before this one left.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut new = socket.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, socket)?;
    Ok(listener)
}

async fn accept(listener: UnixListener, inbox: Inbox) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let inbox = inbox.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &inbox).await {
                        debug!("the CNI plugin went away: {error}");
                    }
                });
            }
            Err(error) => {
                warn!("the CNI plugin cannot be heard: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, inbox: &Inbox) -> io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(LONGEST));
    timeout(QUICK, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) if request.version != VERSION => Answer::NotDone(format!(
            "nat-cni speaks version {} and this nat-agent {VERSION}: install the nat-cni that \
             came with it",
            request.version
        )),
        Ok(request) => answer(request, inbox).await,
        Err(error) => Answer::NotDone(format!("nat-agent does not understand: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn answer(request: Request, inbox: &Inbox) -> Answer {
    let pod = match &request.question {
        Question::Status => return Answer::Done(None),
        Question::Add(attachment) => Some(attachment.path()),
        Question::Check(_) | Question::Del(_) => None,
    };
    let patience = Duration::from_millis(request.patience);
    let answer = inbox.ask(request.question, patience).await;
    if let (Some(pod), Answer::NotDone(why)) = (pod, &answer) {
        warn!("pod {pod} cannot start yet: {why}");
    }
    answer
}
