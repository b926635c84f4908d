//! What etcd's clients hear when something is refused: the only file that knows etcd's texts.
//!
//! Clients match the *message* and then take the code from a table of their own, so both have to
//! be etcd's, byte for byte. A kind that this server does not raise yet is here all the same:
//! the table is a fact about the API, not about this server.

use kontiki::{ChangeError, ProposeError, ReadError, Rejection, TransferError};
use kontiki_store::{RequestError, StoreError};
use tonic::{Code, Status};

macro_rules! refusals {
    ($($name:ident = $code:ident $message:literal;)*) => {
        /// A refusal that etcd has a text for. The name says what the text says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "the message of each is its documentation")]
        pub enum Refusal {
            $($name,)*
        }

        impl Refusal {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The status code of gRPC.
            #[must_use]
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }

            /// The message, as clients compare it.
            #[must_use]
            pub const fn message(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("etcdserver: ", $message),)*
                }
            }
        }
    };
}

refusals! {
    EmptyKey = InvalidArgument "key is not provided";
    KeyNotFound = InvalidArgument "key not found";
    ValueProvided = InvalidArgument "value is provided";
    LeaseProvided = InvalidArgument "lease is provided";
    TooManyOperations = InvalidArgument "too many operations in txn request";
    DuplicateKey = InvalidArgument "duplicate key given in txn request";
    InvalidClientApiVersion = InvalidArgument "invalid client api version";
    InvalidSortOption = InvalidArgument "invalid sort option";
    RequestTooLarge = InvalidArgument "request is too large";
    InvalidMemberUrls = InvalidArgument "given member URLs are invalid";
    UserEmpty = InvalidArgument "user name is empty";
    RoleEmpty = InvalidArgument "role name is empty";
    AuthFailed = InvalidArgument "authentication failed, invalid user ID or password";
    PermissionNotGiven = InvalidArgument "permission not given";
    InvalidAuthManagement = InvalidArgument "invalid auth management";
    AuthRevisionIsOld = InvalidArgument "revision of auth store is old";
    WrongDowngradeFormat = InvalidArgument "wrong downgrade target version format";
    InvalidDowngradeTarget = InvalidArgument "invalid downgrade target version";

    Compacted = OutOfRange "mvcc: required revision has been compacted";
    FutureRevision = OutOfRange "mvcc: required revision is a future revision";
    LeaseTtlTooLarge = OutOfRange "too large lease TTL";

    NoSpace = ResourceExhausted "mvcc: database space exceeded";
    TooManyRequests = ResourceExhausted "too many requests";

    LeaseNotFound = NotFound "requested lease not found";
    MemberNotFound = NotFound "member not found";

    LeaseExists = FailedPrecondition "lease already exists";
    MemberExists = FailedPrecondition "member ID already exist";
    PeerUrlsExist = FailedPrecondition "Peer URLs already exists";
    MemberNotLearner = FailedPrecondition "can only promote a learner member";
    LearnerNotReady = FailedPrecondition
        "can only promote a learner member which is in sync with leader";
    TooManyLearners = FailedPrecondition "too many learner members in cluster";
    ClusterIdMismatch = FailedPrecondition "cluster ID mismatch";
    RootUserNotFound = FailedPrecondition "root user does not exist";
    RootRoleNotGranted = FailedPrecondition "root user does not have root role";
    UserExists = FailedPrecondition "user name already exists";
    UserNotFound = FailedPrecondition "user name not found";
    RoleExists = FailedPrecondition "role name already exists";
    RoleNotFound = FailedPrecondition "role name not found";
    RoleNotGranted = FailedPrecondition "role is not granted to the user";
    PermissionNotGranted = FailedPrecondition "permission is not granted to the role";
    AuthNotEnabled = FailedPrecondition "authentication is not enabled";
    NotLeader = FailedPrecondition "not leader";
    NotCapable = FailedPrecondition "not capable";
    NotForLearners = FailedPrecondition "rpc not supported for learner";
    BadLeaderTransferee = FailedPrecondition "bad leader transferee";
    ClusterVersionNotFound = FailedPrecondition "cluster version not found during downgrade";
    DowngradeInProgress = FailedPrecondition "cluster has a downgrade job in progress";
    NoDowngrade = FailedPrecondition "no inflight downgrade job";

    // The table of clients says FAILED_PRECONDITION; a real etcd sends UNKNOWN.
    NotEnoughStartedMembers = Unknown
        "re-configuration failed due to not enough started members";

    PermissionDenied = PermissionDenied "permission denied";
    InvalidAuthToken = Unauthenticated "invalid auth token";

    NoLeader = Unavailable "no leader";
    LeaderChanged = Unavailable "leader changed";
    Stopped = Unavailable "server stopped";
    TimedOut = Unavailable "request timed out";
    TimedOutLeaderFailed = Unavailable
        "request timed out, possibly due to previous leader failure";
    TimedOutConnectionLost = Unavailable
        "request timed out, possibly due to connection lost";
    TimedOutApplying = Unavailable
        "request timed out, waiting for the applied index took too long";
    Unhealthy = Unavailable "unhealthy cluster";

    Corrupt = DataLoss "corrupt cluster";
    WatchCanceled = Cancelled "watch canceled";
    RequestCanceled = Cancelled "request canceled";
    DeadlineExceeded = DeadlineExceeded "context deadline exceeded";
}

/// Why a call has no answer, whatever said so.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) Status);

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self(status)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self(Status::new(refusal.code(), refusal.message()))
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        Self::from(match error {
            RequestError::EmptyKey => Refusal::EmptyKey,
            RequestError::EmptyOperation => Refusal::KeyNotFound,
            RequestError::ValueProvided => Refusal::ValueProvided,
            RequestError::LeaseProvided => Refusal::LeaseProvided,
            RequestError::TooManyOperations => Refusal::TooManyOperations,
            RequestError::DuplicateKey => Refusal::DuplicateKey,
            RequestError::InvalidSortOption => Refusal::InvalidSortOption,
            other => return Self(Status::unknown(other.to_string())),
        })
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::from(match error {
            StoreError::Compacted => Refusal::Compacted,
            StoreError::FutureRevision => Refusal::FutureRevision,
            StoreError::KeyNotFound => Refusal::KeyNotFound,
            StoreError::LeaseNotFound => Refusal::LeaseNotFound,
            // etcd has no such bound and so no text; the code keeps clients from trying again.
            StoreError::TooLarge => {
                return Self(Status::resource_exhausted(format!("etcdserver: {error}")));
            }
            // The node stops, or has stopped: another server may well answer.
            StoreError::Fatal(_) => Refusal::Stopped,
            other => return Self(Status::unknown(other.to_string())),
        })
    }
}

impl From<ProposeError> for Failure {
    fn from(error: ProposeError) -> Self {
        Self::from(match error {
            ProposeError::Rejected(rejection) => of_rejection(&rejection),
            // Certainly lost. etcd has no text for that; this one lets clients try again.
            ProposeError::Superseded { .. } => Refusal::LeaderChanged,
            ProposeError::Stopped(_) => Refusal::Stopped,
            // The leader that had the write is gone or silent: it may be done, now or later.
            ProposeError::Unknown { .. } => Refusal::TimedOutLeaderFailed,
            _ => Refusal::TimedOut,
        })
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::from(match error {
            ReadError::Rejected(rejection) => of_rejection(&rejection),
            ReadError::Stopped(_) => Refusal::Stopped,
            _ => Refusal::TimedOut,
        })
    }
}

/// Requests wait for a leader until their time is over, so most rejections are those of a
/// request whose time is over.
fn of_rejection(rejection: &Rejection) -> Refusal {
    match rejection {
        Rejection::Busy => Refusal::TooManyRequests,
        Rejection::TooLarge { .. } => Refusal::RequestTooLarge,
        Rejection::Stopped => Refusal::Stopped,
        Rejection::NotLeader { .. }
        | Rejection::Transferring { .. }
        | Rejection::NotReady
        | Rejection::NoState
        | Rejection::NoSessions
        | Rejection::MembershipInProgress { .. }
        | Rejection::MembershipChanged { .. }
        | Rejection::InvalidChange(_)
        | Rejection::NoQuorum => Refusal::TimedOut,
        Rejection::NoSpace => Refusal::NoSpace,
    }
}

/// Why the members are as they were.
pub(crate) fn of_change(error: ProposeError) -> Failure {
    let refusal = match error {
        ProposeError::Rejected(Rejection::InvalidChange(why)) => match why {
            ChangeError::NoSuchMember(_) => Refusal::MemberNotFound,
            ChangeError::NotALearner(_) | ChangeError::NotAVoter(_) => Refusal::MemberNotLearner,
            ChangeError::NotCaughtUp(_) => Refusal::LearnerNotReady,
            ChangeError::NoVoters => Refusal::NotEnoughStartedMembers,
            ChangeError::AddressInUse(_) => Refusal::PeerUrlsExist,
            // etcd has no words for these.
            other @ (ChangeError::Empty | ChangeError::TooManyVoters { .. }) => {
                return Failure(Status::failed_precondition(format!("etcdserver: {other}")));
            }
        },
        // The voters that would remain cannot be reached: the cluster would stand still.
        ProposeError::Rejected(Rejection::NoQuorum) => Refusal::Unhealthy,
        other => return other.into(),
    };
    refusal.into()
}

/// Why the leader leads on.
pub(crate) fn of_transfer(error: &TransferError) -> Failure {
    match error {
        TransferError::NotLeader { .. } => Refusal::NotLeader,
        TransferError::Stopped(_) => Refusal::Stopped,
        _ => Refusal::TimedOut,
    }
    .into()
}

/// Says that a member can have one peer URL only. etcd takes several.
pub(crate) fn one_peer_url() -> Status {
    let text = "more than one for a member is not supported yet";
    Status::invalid_argument(format!("{}: {text}", Refusal::InvalidMemberUrls.message()))
}

/// Says that alarms follow from what is.
pub(crate) fn no_alarm_by_hand() -> Status {
    Status::unimplemented(
        "etcdserver: an alarm cannot be raised by hand: it says what is wrong with a member",
    )
}

/// Says that there is no state here that ever was one of the cluster's.
pub(crate) fn refetching() -> Status {
    Status::unavailable(
        "etcdserver: the store of this server was damaged and is being fetched from the others",
    )
}

/// Says that a method is part of the API and not of this server yet.
pub(crate) fn not_yet(service: &str, method: &str) -> Status {
    let service = service.rsplit('.').next().unwrap_or(service);
    Status::unimplemented(format!("etcdserver: {service}.{method} is not implemented yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of etcd's design page, retyped from it and not from the code above.
    const TABLE: &str = include_str!("../tests/data/refusals.txt");

    #[test]
    fn every_refusal_has_etcds_code_and_text() {
        let mut expected: Vec<&str> = TABLE.lines().filter(|line| !line.starts_with('#')).collect();
        let mut actual: Vec<String> = Refusal::ALL
            .iter()
            .map(|refusal| format!("{:?}: {}", refusal.code(), refusal.message()))
            .collect();
        expected.sort_unstable();
        actual.sort_unstable();
        assert_eq!(actual, expected);
    }

    #[test]
    fn a_write_that_would_return_too_much_exhausts_a_resource() {
        let Failure(status) = StoreError::TooLarge.into();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let text = "etcdserver: the answer to this request would be too large";
        assert_eq!(status.message(), text);
    }
}
