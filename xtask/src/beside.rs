//! Runs a command beside the rest, with what time the rest leaves it.

use std::process::{Child, Command};

use anyhow::{Context, Result, bail};

use crate::run;

/// A command that runs beside. Dropped, it is ended.
pub struct Beside {
    child: Child,
    words: String,
}

impl Beside {
    /// Starts it at the lowest priority. It prints where all the others do.
    pub fn start(command: &Command) -> Result<Self> {
        let mut nice = Command::new("nice");
        nice.args(["-n", "19"])
            .arg(command.get_program())
            .args(command.get_args());
        let words = run::words(command);
        let child = run::prepare(&mut nice)
            .spawn()
            .with_context(|| format!("cannot run {words}"))?;
        Ok(Self { child, words })
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("`{}` ended with {status}", self.words);
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended; then there is nobody to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_how_it_ended() {
        let run = |word| Beside::start(&Command::new(word)).unwrap().finish();
        assert!(run("true").is_ok());
        assert!(run("false").is_err());
    }
}
