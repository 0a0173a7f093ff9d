//! One suite for every driver: what [`skerry_vmm::Vmm`] and [`skerry_vmm::Vm`] promise, checked
//! against the in-memory driver and against QEMU with the real kernel and agent.

#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod fake;
mod guest;
mod lives;
mod qemu;
mod qemu_disks;
mod states;
mod suite;
mod volumes;

/// Makes one test of each promise for one harness.
macro_rules! contract {
    ($harness:ty, $suite:ident: $($promise:ident,)*) => {$(
        #[tokio::test]
        async fn $promise() {
            let checked = crate::$suite::$promise(<$harness>::new());
            tokio::time::timeout(crate::suite::TEST_DEADLINE, checked).await.expect("in time");
        }
    )*};
    ($harness:ty) => {
        $crate::contract! { $harness, suite:
            a_guest_answers_on_its_channel_even_when_spoken_to_before_it_is_up,
            the_record_is_committed_once_and_is_the_handles,
            a_record_that_cannot_be_kept_leaves_nothing,
            a_boot_given_up_after_its_record_leaves_nothing,
            a_spec_out_of_range_is_refused_before_anything_is_made,
            a_newer_connection_replaces_the_older,
            a_dropped_connection_makes_room_for_the_next,
            a_kill_ends_it_for_everyone_who_waits_and_may_be_repeated,
            a_guest_that_powers_off_is_reported_so_ever_after,
            a_guest_that_reboots_is_reported_so,
            an_end_from_outside_is_a_crash,
            a_dropped_handle_leaves_the_vm_and_the_driver_adopts_it_again,
            the_next_life_adopts_talks_and_kills,
            the_next_life_learns_how_an_adopted_guest_ended,
            a_record_that_names_another_process_is_gone,
            a_record_of_another_driver_is_not_touched,
            a_paused_guest_is_silent_until_resumed,
            the_console_is_kept_within_its_limit,
        }
    };
}
pub(crate) use contract;
