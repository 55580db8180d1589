//! What the CNI plugin has said, in a file that lasts as long as the node runs: an agent that comes
//! after one that was killed knows the pods that have started and that the API does not show yet.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nat_cni::protocol::Attachment;
use tracing::warn;

/// The file.
#[derive(Debug)]
pub struct Record {
    file: PathBuf,
    /// What is in it; `None` until it was read.
    content: Option<Vec<u8>>,
}

impl Record {
    /// Beside the socket.
    pub fn beside(socket: &Path) -> Self {
        Self {
            file: socket.with_file_name("arrivals.json"),
            content: None,
        }
    }

    /// What was said before this agent came, the first time it is asked.
    pub fn recall(&mut self) -> Vec<Attachment> {
        if self.content.is_some() {
            return Vec::new();
        }
        let content = fs::read(&self.file).unwrap_or_default();
        let known = match serde_json::from_slice(&content) {
            Ok(known) => known,
            Err(_) if content.is_empty() => Vec::new(),
            Err(error) => {
                warn!("{}: {error}", self.file.display());
                Vec::new()
            }
        };
        self.content = Some(content);
        known
    }

    /// Writes what is known now.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, known: &[&Attachment]) -> io::Result<()> {
        let content = serde_json::to_vec(known)?;
        if self.content.as_ref() == Some(&content) {
            return Ok(());
        }
        let new = self.file.with_extension("new");
        fs::write(&new, &content)?;
        fs::rename(&new, &self.file)?;
        self.content = Some(content);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_outlives_the_agent() {
        let directory = std::env::temp_dir().join(format!("natctl-record-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let again = || Record::beside(&directory.join("agent.sock"));
        let mut record = again();
        assert_eq!(record.recall(), []);
        let attachment = Attachment {
            name: "web-0".to_owned(),
            ..Attachment::default()
        };
        record.write(&[&attachment]).unwrap();
        assert_eq!(record.recall(), [], "it knows that itself");
        assert_eq!(again().recall(), [attachment]);
        fs::write(directory.join("arrivals.json"), "[{").unwrap();
        assert_eq!(again().recall(), []);
        fs::remove_dir_all(&directory).unwrap();
        assert!(again().write(&[]).is_err());
    }
}
