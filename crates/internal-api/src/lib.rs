//! The contract between our processes: what control asks of a node ([`NodeApi`]) and of the guest
//! that runs there ([`GuestApi`]).
//!
//! In one process these traits are called directly; between machines the same traits get a network
//! form. This crate refuses to know HTTP status codes, databases, dialects and hypervisors.

pub mod doctor;
pub mod edge;
pub mod error;
pub mod guest;
pub mod injection;
pub mod network;
pub mod node;
pub mod preview;
pub mod route;
pub mod volume;
pub mod workload;

pub use doctor::{DoctorCheck, DoctorLevel, NodeDoctor};
pub use edge::{EdgeApi, EdgeError};
pub use error::{ConnectFailure, NodeError, PullFailure};
pub use guest::{
    ByteStream, Duplex, ExecControl, ExecExit, ExecOutput, ExecRequest, ExecSession, FileKind,
    FileStat, GuestApi, GuestListener, GuestStats, GuestStream, GuestVisitor, ListeningPort, Pty,
    User, WriteMode,
};
pub use injection::{CertificateIssuer, InjectedRequest, InjectedService, Injection, Injections};
pub use node::{
    EgressRefusal, EgressRefusals, ImageInfo, ImagePull, LogSource, NodeApi, NodeCapacity,
    NodeEvent, NodeNetwork, PullStep, RefusedEgress, SnapshotContents, SnapshotInfo, StartFrom,
    StartPath, StartStatistics, StopMode, VmExit, VmPhase, VmReport, VmSpec,
};
pub use preview::{
    OpenPreview, PREVIEW_TOKEN_CHARS, PreviewAddress, PreviewCredential, PreviewRefusal,
    RESERVED_LABELS, TokenAddress,
};
pub use route::{KeyFingerprint, RouteApi, RouteCredential, RouteError, SshPasswordId};
pub use volume::{ListDepth, RemoveDepth, VolumeEntry, VolumeFiles, VolumeInfo, VolumeListing};
pub use workload::{
    LogPart, LogStream, SupervisorApi, WorkloadEnd, WorkloadLog, WorkloadLogLine, WorkloadPhase,
    WorkloadReport, WorkloadReports,
};
