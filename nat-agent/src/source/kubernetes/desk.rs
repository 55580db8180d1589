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

use super::{arrivals::Arrivals, record::Record, watch::Shared};

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
    record: Record,
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
            record: Record::beside(socket),
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

    /// Takes new questions in, and what they say of pods; the first time, what was said before, too.
    pub fn take(&mut self, arrivals: &mut Arrivals, now: Duration) {
        for attachment in self.record.recall() {
            arrivals.add(attachment, now);
        }
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

    /// Has the next agent know what was said, before anybody is answered.
    pub fn write(&mut self, arrivals: &Arrivals) {
        if self.listener.is_some() {
            let written = self.record.write(&arrivals.attachments());
            self.problem = written.err().map(|error| {
                format!("an agent after this one will not know new pods' addresses: {error}")
            });
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

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixStream,
    };

    use nat_cni::socket::ask_once;

    use super::*;

    /// A desk in a directory of its own, removed at the end.
    struct Opened {
        desk: Desk,
        shared: Shared,
        arrivals: Arrivals,
        directory: PathBuf,
    }

    impl Opened {
        fn new(name: &str) -> Self {
            let name = format!("natctl-desk-{name}-{}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            let shared = Shared::default();
            let mut desk = Desk::new(&directory.join("run/agent.sock"), &shared);
            desk.open();
            assert_eq!(desk.problem(), None);
            Self {
                desk,
                shared,
                arrivals: Arrivals::default(),
                directory,
            }
        }

        fn ask(&self, question: Question, patience: u64) -> JoinHandle<io::Result<Answer>> {
            let socket = self.desk.socket.clone();
            let patience = Duration::from_millis(patience);
            tokio::task::spawn_blocking(move || ask_once(&socket, &question, patience))
        }

        async fn next(&mut self) {
            self.shared.changed().await;
            self.desk.take(&mut self.arrivals, Duration::ZERO);
        }
    }

    impl Drop for Opened {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    fn pod() -> Attachment {
        Attachment {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            container: "c1".to_owned(),
            ..Attachment::default()
        }
    }

    #[tokio::test]
    async fn a_pod_is_answered_when_it_is_ready() {
        let mut opened = Opened::new("ready");
        let asked = opened.ask(Question::Add(pod()), 10_000);
        opened.next().await;
        assert_eq!(opened.desk.pods(), [pod().path()].into());
        opened.desk.answer(|_| Err("not yet".to_owned()));
        assert_eq!(opened.desk.pods().len(), 1);
        opened.desk.answer(|_| Ok(Some("blocked".to_owned())));
        let answer = asked.await.unwrap().unwrap();
        assert_eq!(answer, Answer::Done(Some("blocked".to_owned())));
        assert!(opened.desk.pods().is_empty());
    }

    #[tokio::test]
    async fn when_the_time_is_over_it_says_what_it_waited_for() {
        let mut opened = Opened::new("late");
        let why = |answer| match answer {
            Answer::NotDone(why) => why,
            Answer::Done(_) => panic!("nobody has answered"),
        };
        let asked = opened.ask(Question::Check(pod()), 50);
        assert!(why(asked.await.unwrap().unwrap()).contains("busy"));
        opened.next().await;
        let asked = opened.ask(Question::Add(pod()), 300);
        opened.next().await;
        opened.desk.answer(|_| Err("the claim".to_owned()));
        assert_eq!(why(asked.await.unwrap().unwrap()), "the claim");
        opened.desk.answer(|_| Ok(None));
        assert!(opened.desk.pods().is_empty(), "nobody waits any more");
    }

    #[tokio::test]
    async fn the_rest_is_answered_at_once() {
        let mut opened = Opened::new("rest");
        let answer = opened.ask(Question::Status, 1_000).await.unwrap();
        assert_eq!(answer.unwrap(), Answer::Done(None));
        let asked = opened.ask(Question::Del("c1".to_owned()), 10_000);
        opened.next().await;
        assert_eq!(asked.await.unwrap().unwrap(), Answer::Done(None));
        let mode = fs::metadata(&opened.desk.socket).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_plugin_of_another_version_is_told_so() {
        let opened = Opened::new("version");
        let socket = opened.desk.socket.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = UnixStream::connect(socket).unwrap();
            let line = r#"{"version": 9, "patience": 1, "question": "status"}"#;
            writeln!(stream, "{line}").unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        assert!(answer.contains("speaks version 9"), "{answer}");
    }

    #[tokio::test]
    async fn an_agent_takes_the_place_of_one_that_was_killed() {
        let opened = Opened::new("again");
        let mut second = Desk::new(&opened.desk.socket, &opened.shared);
        second.open();
        assert_eq!(second.problem(), None);
        let answer = opened.ask(Question::Status, 1_000).await.unwrap();
        assert_eq!(answer.unwrap(), Answer::Done(None));
        let mut nowhere = Desk::new(Path::new("/proc/agent.sock"), &opened.shared);
        nowhere.open();
        assert!(nowhere.problem().unwrap().contains("/proc/agent.sock"));
    }
}
