//! Which processor this host has, as far as a saved state depends on it.

use std::{fs, io};

use crate::Accelerator;

/// The lines of `/proc/cpuinfo` (proc(5)) that tell one kind of processor from another.
const KIND: [&str; 5] = ["vendor_id", "cpu family", "model", "model name", "stepping"];

/// Its instructions: they are the guest's too when it runs on the processor itself.
const INSTRUCTIONS: &str = "flags";

/// The processor in words. An emulated guest sees nothing of it but the speed of its time-stamp
/// counter, which is one of the kind.
pub(super) fn identity(accelerator: Accelerator) -> io::Result<String> {
    Ok(identity_in(&fs::read_to_string("/proc/cpuinfo")?, accelerator))
}

fn identity_in(text: &str, accelerator: Accelerator) -> String {
    let matters = |name: &str| match accelerator {
        Accelerator::Kvm => KIND.contains(&name) || name == INSTRUCTIONS,
        Accelerator::Tcg | Accelerator::None => KIND.contains(&name),
    };
    // All processors of a host are alike; the first paragraph is the first one.
    text.lines()
        .take_while(|line| !line.trim().is_empty())
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .filter(|(name, _)| matters(name))
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: Maker\ncpu family\t: 25\nmodel\t\t: 1\n\
        model name\t: Maker 9000\nstepping\t: 1\ncpu MHz\t\t: 2445.426\nflags\t\t: fpu vme\n\n\
        processor\t: 1\nvendor_id\t: Other\n";

    #[test]
    fn an_emulated_guest_depends_on_the_kind_alone_and_not_on_the_clock_of_the_moment() {
        let kind = "vendor_id=Maker\ncpu family=25\nmodel=1\nmodel name=Maker 9000\nstepping=1\n";
        assert_eq!(identity_in(CPUINFO, Accelerator::Tcg), kind);
        let all = format!("{kind}flags=fpu vme\n");
        assert_eq!(identity_in(CPUINFO, Accelerator::Kvm), all);
    }
}
