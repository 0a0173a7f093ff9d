//! Bringing a running VM down: the guest is asked first if there is time, then the process is killed
//! by the release.

use std::{sync::Arc, time::Duration};

use skerry_internal_api::{StopMode, VmExit};
use skerry_vmm::{Exit, Vm};

use crate::{guest::GuestLink, host::Host, host::StepFailed, vm::bring_up::in_words};

/// How long a guest has that was asked to power off and did not answer: the question may have reached it,
/// and a kill would meet it while it makes its disk consistent. The agent gives processes 4 seconds.
const UNANSWERED_GRACE: Duration = Duration::from_secs(8);

/// The most a caller's grace period is believed.
const MAX_GRACE: Duration = Duration::from_secs(600);

/// Ends the guest as `mode` says. Afterwards the process is gone, or the release will kill it.
pub(crate) async fn end_guest(
    host: &Host,
    vm: &Arc<dyn Vm>,
    link: Option<&Arc<GuestLink>>,
    mode: StopMode,
) -> Result<(), StepFailed> {
    match (mode, link) {
        (StopMode::Graceful { within }, Some(link)) => {
            let ended = tokio::time::timeout(within.min(MAX_GRACE), async {
                tokio::select! {
                    asked = link.power_off() => match asked {
                        Ok(()) => Some(vm.wait_exit().await),
                        Err(error) => {
                            tracing::info!(%error, "the guest has not agreed to power off");
                            let end = tokio::time::timeout(UNANSWERED_GRACE, vm.wait_exit());
                            end.await.ok()
                        }
                    },
                    exit = vm.wait_exit() => Some(exit),
                }
            })
            .await;
            match ended {
                Ok(Some(exit)) => tracing::debug!(exit = in_words(&exit), "the guest has ended"),
                Ok(None) => {}
                Err(_) => tracing::info!(?within, "the guest did not power off in time: killed"),
            }
        }
        // Nobody in the guest can be asked.
        (StopMode::Graceful { .. }, None) | (StopMode::Kill, _) => {}
    }
    // Asking twice is asking a guest that has gone: there is nothing to repeat.
    let passed = host.config.faults.after("power_off").await;
    passed.map(|_| ()).map_err(StepFailed::at("power_off"))
}

/// What control is told of an end nobody here asked for.
pub(crate) fn exit_of(exit: &Exit) -> VmExit {
    match exit {
        Exit::PoweredOff => VmExit::PoweredOff,
        Exit::Rebooted => VmExit::Rebooted,
        Exit::Killed | Exit::Crashed(_) | Exit::Unknown => {
            VmExit::Crashed { reason: in_words(exit) }
        }
    }
}
