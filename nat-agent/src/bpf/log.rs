//! What the programs log, in objects built for it (`NAT_EBPF_LOG`): into the agent's log.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;

/// The map that log records come through.
const RECORDS: &str = "AYA_LOGS";

/// Follows the programs' log, if they keep one. Call within a tokio runtime.
///
/// # Errors
/// The kernel's.
pub fn follow(ebpf: &mut Ebpf) -> Result<()> {
    if ebpf.map(RECORDS).is_none() {
        return Ok(());
    }
    warn!("the programs were built with NAT_EBPF_LOG: every drop is logged, which is slow");
    let logger = EbpfLogger::init(ebpf).context("follow the programs' log")?;
    // SAFETY: the logger owns its descriptor and never gives it away.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
