//! One boot: emulated unless asked otherwise, without network or disk.

use super::kernels::tool;
use crate::shell;
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Boots and returns what the guest printed. The guest ends itself (`-no-reboot`); else the limit does.
/// `append` goes to the end of the kernel's command line.
pub fn boot(kernel: &Path, initrd: &Path, append: &str, limit: Duration) -> Result<String> {
    // /dev/kvm may be there and still boot no ordinary guest (nested), so that it is used on request only.
    let accelerator = match std::env::var("GUARD_ACCEL").as_deref() {
        Ok("kvm") => "kvm",
        _ => "tcg,thread=multi",
    };
    let mut command = Command::new(tool("qemu-system-x86_64")?);
    command.args(["-M", "q35", "-accel", accelerator, "-smp", "2", "-m", "768"]);
    // QEMU 7.2's emulation of cmpxchg16b crashed one guest in twenty.
    command.args(["-cpu", "qemu64,-cx16"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    let append = format!("console=ttyS0 quiet panic=-1 {append}");
    command.args(["-append", append.trim_end(), "-serial", "stdio"]);
    Ok(shell::run(&mut command, limit)?.output)
}
