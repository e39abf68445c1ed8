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
use crate::daemon::difference::{Difference, Kind};

/// At most so often is guard put in front of another program again: two who both insist must not keep a CPU busy.
const CONTEST: Duration = Duration::from_secs(1);
/// Whoever takes the first place so often in a minute is left there for as long, and told of.
const MOST_CONTESTS: usize = 3;
const CONTESTS_WITHIN: Duration = Duration::from_secs(60);

impl Instance {
    /// Looks at every hook and repairs what can be; what was amiss, and whether it is still. What could not be tried is an
    /// error, after all others were.
    pub fn repair(&mut self) -> Result<Vec<Difference>, KernelError> {
        let broken: Vec<HookStatus> = self.hooks()?.into_iter().filter(|hook| !hook.sound()).collect();
        let mut done = Vec::new();
        let mut failed = None;
        for status in broken {
            let mut difference = difference(&status);
            match self.repair_one(&status) {
                Ok(true) => done.push(difference.repaired()),
                Ok(false) => {
                    if self.gave_up(&status) {
                        difference.what.push_str(&format!(
                            "; it took the first place {MOST_CONTESTS} times in a minute, so guard leaves it there for a while"
                        ));
                    }
                    done.push(difference);
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    done.push(difference);
                }
            }
        }
        for (name, program) in &self.programs {
            let path = self.pins.program(name);
            if !path.exists() {
                pin_over(program.as_fd(), &path)?;
                let what = format!("the pin of program {name} was gone");
                done.push(Difference::new(Kind::PinGone, name.clone(), what).repaired());
            }
        }
        match failed {
            // Told with what is amiss, so that nothing found is lost.
            Some(error) if done.is_empty() => Err(error),
            _ => Ok(done),
        }
    }

    /// Whether a hook may be put in front now.
    fn may_contest(&mut self, name: &str) -> bool {
        let now = Instant::now();
        let contests = self.contests.entry(name.to_owned()).or_default();
        contests.retain(|then| now.duration_since(*then) < CONTESTS_WITHIN);
        if contests.len() >= MOST_CONTESTS || self.contested.is_some_and(|last| last.elapsed() < CONTEST) {
            return false;
        }
        contests.push(now);
        self.contested = Some(now);
        true
    }

    fn gave_up(&self, status: &HookStatus) -> bool {
        let hook = HOOKS.iter().find(|hook| hook.program == status.program);
        let contests = hook.and_then(|hook| self.contests.get(&hook.pin_name(status.interface)));
        status.attached && !status.first && contests.is_some_and(|contests| contests.len() >= MOST_CONTESTS)
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
            if !self.may_contest(&name) {
                return Ok(false);
            }
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
        if status.attached && !self.may_contest(&format!("{}_{}", status.program, status.interface)) {
            return Ok(false);
        }
        let devices = interfaces::devices()?;
        let Some(device) = devices.get(&status.interface) else { return Ok(false) };
        pin_over(self.programs[program].as_fd(), &self.pins.program(program))?;
        if program.starts_with("host_") {
            self.attach_host_side(device)?;
        } else {
            self.attach_wire(device)?;
        }
        // A filter of the same priority that was made later stands before ours, and there is none lower.
        Ok(self
            .hooks()?
            .iter()
            .any(|now| now.program == status.program && now.interface == status.interface && now.first))
    }
}

fn difference(status: &HookStatus) -> Difference {
    let (kind, what) = if !status.attached {
        (Kind::HookDetached, format!("the {} program was detached", status.hook))
    } else if !status.first {
        (Kind::ForeignInFront, format!("another program stands before the {} program", status.hook))
    } else {
        (Kind::PinGone, format!("the pin of the {} program is gone", status.hook))
    };
    let mut difference = Difference::new(kind, status.target.clone(), format!("{what} on {}", status.target));
    difference.hook.clone_from(&status.hook);
    // What stands there instead, or in front.
    difference.by = status
        .problem
        .as_deref()
        .filter(|_| kind != Kind::PinGone)
        .and_then(|problem| problem.split_once(": "))
        .map(|(_, who)| who.to_owned());
    difference
}
