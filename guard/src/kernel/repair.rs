//! Puts back what somebody took away or stood in front of.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{
    HookStatus, Instance, KernelError,
    attach::{At, HOOKS},
    interfaces,
    pins::pin_over,
    sealing, sys,
};

/// At most so often is guard put in front of another program again: two who both insist must not keep a CPU busy.
const CONTEST: Duration = Duration::from_secs(1);

impl Instance {
    /// Looks at every hook and repairs what can be; each repair in words. What could not be is an error, after all
    /// others were tried.
    pub fn repair(&mut self) -> Result<Vec<String>, KernelError> {
        let broken: Vec<HookStatus> = self.hooks()?.into_iter().filter(|hook| !hook.sound()).collect();
        let mut done = Vec::new();
        let mut failed = None;
        for status in broken {
            match self.repair_one(&status) {
                Ok(true) => done.push(format!(
                    "{} {} on {}: {}; put back",
                    status.layer,
                    status.hook,
                    status.target,
                    status.problem.as_deref().unwrap_or("not ours")
                )),
                Ok(false) => {}
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        for (name, program) in &self.programs {
            let path = self.pins.program(name);
            if !path.exists() {
                pin_over(program.as_fd(), &path)?;
                done.push(format!("the pin of program {name} was gone; put back"));
            }
        }
        failed.map_or(Ok(done), Err)
    }

    fn repair_one(&mut self, status: &HookStatus) -> Result<bool, KernelError> {
        let Some(hook) = HOOKS.iter().find(|hook| hook.program == status.program) else { return Ok(false) };
        let devices = interfaces::devices()?;
        let ethernet = devices.get(&status.interface).is_none_or(|device| device.ethernet);
        let program = hook.program_for(ethernet);
        if !self.programs.contains_key(program) {
            self.load_again(program)?;
        }
        if status.hook.starts_with("clsact") {
            return self.repair_filter(program, status);
        }
        let name = hook.pin_name(status.interface);
        if !status.attached {
            if status.interface != 0 && !devices.contains_key(&status.interface) {
                return Ok(false);
            }
            self.attach(hook, status.interface, ethernet)?;
            // A group that was made anew under the same name is another one to the seal.
            if matches!(hook.at, At::Cgroup(_)) && self.programs.contains_key("seal_option") {
                sealing::hold(self.map(sealing::CGROUP)?, &self.settings)?;
            }
            if hook.program == "sockets_create" {
                self.learn_sockets()?;
            }
            return Ok(true);
        }
        if !status.first {
            if self.contested.is_some_and(|last| last.elapsed() < CONTEST) {
                return Ok(false);
            }
            self.contested = Some(Instant::now());
            // The same program cannot be attached twice: a second copy goes in front, then the first goes. No gap.
            let before = self.links.remove(&name);
            self.load_again(program)?;
            self.attach(hook, status.interface, ethernet)?;
            drop(before);
            return Ok(true);
        }
        // Only the pin is gone.
        let Some(link) =
            self.links.get(&name).filter(|link| sys::info_of_link(link.as_fd()).is_ok_and(|info| info.target != 0))
        else {
            return Ok(false);
        };
        pin_over(link.as_fd(), &self.pins.link(&name))?;
        Ok(true)
    }

    fn repair_filter(&mut self, program: &str, status: &HookStatus) -> Result<bool, KernelError> {
        if status.attached && self.contested.is_some_and(|last| last.elapsed() < CONTEST) {
            return Ok(false);
        }
        self.contested = Some(Instant::now());
        let devices = interfaces::devices()?;
        let Some(device) = devices.get(&status.interface) else { return Ok(false) };
        pin_over(self.programs[program].as_fd(), &self.pins.program(program))?;
        self.attach_wire(device)?;
        // A filter of the same priority that was made later stands before ours, and there is none lower.
        Ok(self
            .hooks()?
            .iter()
            .any(|now| now.program == status.program && now.interface == status.interface && now.first))
    }
}
