//! Attaching programs to devices by pinned links: they stay when the agent
//! goes, and the next agent replaces the program in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, XdpMode,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
    },
};

use super::{object, pins::Pins, sys};

/// How the pins of clients' programs end.
const CLIENT: &str = "::client";

/// Where on a device a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// XDP in the driver.
    XdpNative,
    /// XDP in the kernel's generic hook.
    XdpGeneric,
    /// tcx ingress.
    Ingress,
    /// tcx egress.
    Egress,
}

/// What a program is there for; a device has at most one for each. In the order in
/// which they are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {
    /// tcx: the guard on the way out.
    Guard,
    /// tcx: answers come in.
    Answers,
    /// XDP, either way.
    Xdp,
    /// tcx: clients' packets come in.
    Client,
}

/// A program on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The device's name.
    pub device: String,
    /// The device's number.
    pub ifindex: u32,
    /// What it is there for.
    pub job: Job,
    /// Where.
    pub hook: Hook,
    /// The program's name.
    pub program: &'static str,
}

impl Attachment {
    /// The pin's file name. A link's mode cannot be changed in place, so it is part of it.
    fn pin(&self) -> String {
        // A BPF file system refuses names with dots; a device's name has no colons.
        let device = self.device.replace('.', ":");
        let job = match (self.job, self.hook) {
            (Job::Xdp, Hook::XdpGeneric) => "xdp-generic",
            (Job::Xdp, _) => "xdp-native",
            (Job::Client, _) => return format!("{device}{CLIENT}"),
            (Job::Answers, _) => "answers",
            (Job::Guard, _) => "guard",
        };
        format!("{device}::{job}")
    }
}

/// What this process has attached or updated, and need not look at every time.
#[derive(Debug, Default)]
pub struct Links {
    /// By the pin's name.
    placed: BTreeMap<String, Attachment>,
}

impl Links {
    /// Has the next [`Self::reconcile`] look at every link.
    pub fn forget(&mut self) {
        self.placed.clear();
    }

    /// Makes the attachments what is wanted: updates in place what is attached,
    /// attaches what is missing, then detaches what is too much. With `stay` a client's
    /// program stays as long as its device does: without it, the guard drops what comes from
    /// there, and for a moment nobody may know whose device it is.
    ///
    /// # Errors
    /// The first attachment that fails; nothing is detached. After the guard's those before it are
    /// made, and of the clients' all others: a pod's device may go at any time.
    pub fn reconcile(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        wanted: &[Attachment],
        stay: bool,
    ) -> Result<()> {
        let pinned = pinned(pins)?;
        let mut failed = None;
        for attachment in wanted {
            match self.place(ebpf, pins, &pinned, attachment) {
                Err(problem) if attachment.job == Job::Client => {
                    failed.get_or_insert(problem);
                }
                other => other?,
            }
        }
        if let Some(problem) = failed {
            return Err(problem);
        }
        let kept: BTreeSet<String> = wanted.iter().map(Attachment::pin).collect();
        for pin in pinned.difference(&kept) {
            let path = pins.links().join(pin);
            let alive = || sys::link_ifindex(&path).is_ok_and(|ifindex| ifindex != 0);
            if !(stay && pin.ends_with(CLIENT) && alive()) {
                fs::remove_file(path)?;
            }
        }
        self.placed.retain(|pin, _| kept.contains(pin));
        Ok(())
    }

    /// Attaches or updates, unless this process has done so before.
    fn place(
        &mut self,
        ebpf: &mut Ebpf,
        pins: &Pins,
        pinned: &BTreeSet<String>,
        attachment: &Attachment,
    ) -> Result<()> {
        let pin = attachment.pin();
        if pinned.contains(&pin) && self.placed.get(&pin) == Some(attachment) {
            return Ok(());
        }
        self.placed.remove(&pin);
        place(ebpf, attachment, &pins.links().join(&pin))
            .with_context(|| format!("attach {} to {}", attachment.program, attachment.device))?;
        self.placed.insert(pin, attachment.clone());
        Ok(())
    }
}

/// The names of the pinned links.
fn pinned(pins: &Pins) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(pins.links()).context("list the pinned links")?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.collect())
}

fn place(ebpf: &mut Ebpf, attachment: &Attachment, path: &Path) -> Result<()> {
    if path.exists() {
        // A device that went away and came back has another number; its link is dead.
        if sys::link_ifindex(path).ok() == Some(attachment.ifindex) {
            let link = FdLink::from(PinnedLink::from_pin(path)?);
            return update(ebpf, attachment, link);
        }
        fs::remove_file(path)?;
    }
    let link = attach(ebpf, attachment)?;
    link.pin(path)
        .with_context(|| format!("pin the link at {}", path.display()))?;
    // tcx takes a name, which may be another pod's device by now.
    if sys::link_ifindex(path)? != attachment.ifindex {
        fs::remove_file(path)?;
        bail!("it is another device than a moment ago");
    }
    Ok(())
}

/// Replaces the program. aya keeps the link that it is handed: it is taken back and closed, or it
/// would hold the program on the device when its pin is gone.
fn update(ebpf: &mut Ebpf, attachment: &Attachment, link: FdLink) -> Result<()> {
    match attachment.hook {
        Hook::XdpNative | Hook::XdpGeneric => {
            let program = object::xdp(ebpf, attachment.program)?;
            let id = program.attach_to_link(link.try_into()?)?;
            drop(program.take_link(id)?);
        }
        Hook::Ingress | Hook::Egress => {
            let program = object::tcx(ebpf, attachment.program)?;
            let id = program.attach_to_link(link.try_into()?)?;
            drop(program.take_link(id)?);
        }
    }
    Ok(())
}

/// Attaches by a BPF link. aya falls back to netlink where the kernel refuses a
/// link; such an attachment cannot be pinned, would end with the agent, and is refused.
fn attach(ebpf: &mut Ebpf, attachment: &Attachment) -> Result<FdLink> {
    let pinnable = match attachment.hook {
        Hook::XdpNative | Hook::XdpGeneric => {
            let native = attachment.hook == Hook::XdpNative;
            let mode = if native {
                XdpMode::Driver
            } else {
                XdpMode::Skb
            };
            let program = object::xdp(ebpf, attachment.program)?;
            let id = program
                .attach_to_if_index(attachment.ifindex, mode)
                .with_context(|| refusal(attachment))?;
            FdLink::try_from(program.take_link(id)?)
        }
        Hook::Ingress => attach_tcx(ebpf, attachment, TcAttachType::Ingress)?,
        Hook::Egress => attach_tcx(ebpf, attachment, TcAttachType::Egress)?,
    };
    match pinnable {
        Ok(link) => Ok(link),
        Err(_) => bail!(
            "the kernel has no BPF links for this hook (Linux 6.6 is needed): the attachment \
             could not be pinned and would end with the agent"
        ),
    }
}

fn attach_tcx(
    ebpf: &mut Ebpf,
    attachment: &Attachment,
    direction: TcAttachType,
) -> Result<Result<FdLink, aya::programs::links::LinkError>> {
    let program: &mut SchedClassifier = object::tcx(ebpf, attachment.program)?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(&attachment.device, direction, options)?;
    Ok(FdLink::try_from(program.take_link(id)?))
}

fn refusal(attachment: &Attachment) -> String {
    match attachment.hook {
        Hook::XdpNative => format!(
            "{} does not take native XDP (its driver lacks it, its MTU is too large for it, or \
             another XDP program is attached); set `xdp: generic` or `xdp: off` for it",
            attachment.device
        ),
        _ => format!(
            "{} does not take XDP; set `xdp: off` for it",
            attachment.device
        ),
    }
}
