//! The packet core on the host against the programs in the kernel. Needs root.
#![no_main]

use std::{
    sync::{
        OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use libfuzzer_sys::fuzz_target;
use nat_tests::fixtures::{fuzz::fuzz_differential, in_kernel::Kernel};

/// A case, and where to say that it has been run.
type Order = (Vec<u8>, SyncSender<()>);

fuzz_target!(|data: &[u8]| {
    static KERNEL: OnceLock<SyncSender<Order>> = OnceLock::new();
    let kernel = KERNEL.get_or_init(start);
    let (done, wait) = sync_channel(1);
    kernel
        .send((data.to_vec(), done))
        .expect("the kernel's thread");
    wait.recv().expect("no difference");
});

/// The programs live on a thread in their network namespace, for the whole run.
fn start() -> SyncSender<Order> {
    let (orders, incoming) = sync_channel::<Order>(1);
    thread::spawn(move || {
        let name = format!("natfuzz{}", std::process::id());
        let ended = Kernel::with(&name, move |kernel| {
            for (data, done) in incoming {
                fuzz_differential(kernel, &data);
                done.send(()).expect("someone who waits");
            }
            Ok(())
        });
        ended.expect("programs in a namespace");
    });
    orders
}
