//! What a sequence is made of, and how sequences are generated.

use proptest::prelude::*;

use super::script::Script;

/// The four ops that are queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Clean,
    Build,
    Exec,
    Code,
}

impl Kind {
    pub(super) fn op(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Build => "build",
            Self::Exec => "exec",
            Self::Code => "code",
        }
    }

    pub(super) fn reply(self) -> &'static str {
        match self {
            Self::Clean => "clean-finished",
            Self::Build => "build-finished",
            Self::Exec | Self::Code => "finished",
        }
    }
}

/// A message that the runner must skip.
#[derive(Clone, Copy, Debug)]
pub(super) enum Malformed {
    OneFrame,
    ThreeFrames,
    Empty,
    UnknownOp,
    OpNotAscii,
    CommandNotUtf8,
    ServiceNotJson,
    EventNotJson,
    NameNotJson,
}

impl Malformed {
    pub(super) fn frames(self) -> &'static [&'static [u8]] {
        match self {
            Self::OneFrame => &[b"status"],
            Self::ThreeFrames => &[b"exec", b"echo three", b"frames"],
            Self::Empty => &[b"", b""],
            Self::UnknownOp => &[b"reboot", b""],
            Self::OpNotAscii => &[b"ex\xffec", b"echo op"],
            Self::CommandNotUtf8 => &[b"exec", b"echo \xff"],
            Self::ServiceNotJson => &[b"start-service", b"{\"name\":"],
            Self::EventNotJson => &[b"event", b"oom"],
            Self::NameNotJson => &[b"shutdown-service", b"a"],
        }
    }
}

/// One action of the agent, of a user or of the machine.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Step(Kind, Script),
    /// At whatever moment it arrives.
    Interrupt,
    /// Once a step that only a signal ends says that it runs.
    InterruptHeld,
    /// The same, with a signal of another process.
    KillHeld(i32),
    /// Text for the next program that asks.
    Input,
    Complete {
        is_json: bool,
    },
    Status {
        now: bool,
    },
    GetApps {
        one: bool,
    },
    StartService(usize),
    StartUnknownService,
    StopService(usize),
    KillService(usize),
    Event,
    Malformed(Malformed),
    /// A peer on the op port that is none.
    Garbage(Vec<u8>),
    /// Another connection for ops takes over.
    NewOpConnection,
    /// A further agent connects for replies.
    Join,
    /// One of the agents leaves, perhaps the only one.
    Leave {
        newest: bool,
    },
    /// Everything so far is answered before the sequence continues.
    Drain,
}

/// A session of some actions.
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    pub(super) actions: Vec<Action>,
    /// SIGTERM after the last action, instead of waiting until everything is answered.
    pub(super) is_stopped: bool,
}

/// The longest sequence; fewer service requests than the runner queues (32).
const MAX_ACTIONS: usize = 24;

pub(super) fn sequences() -> impl Strategy<Value = Sequence> {
    let stopped = prop_oneof![60 => Just(false), 1 => Just(true)];
    (prop::collection::vec(action(), 1..=MAX_ACTIONS), stopped)
        .prop_map(|(actions, is_stopped)| Sequence { actions, is_stopped })
}

fn action() -> impl Strategy<Value = Action> {
    let step = (kind(), super::script::scripts()).prop_map(|(kind, script)| Action::Step(kind, script));
    let one_of_two = 0..super::session::SERVICES;
    let now_and_then = prop_oneof![
        2 => malformed().prop_map(Action::Malformed),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Action::Garbage),
        1 => Just(Action::Event),
        1 => Just(Action::StartUnknownService),
        1 => one_of_two.clone().prop_map(Action::KillService),
        2 => Just(Action::NewOpConnection),
        1 => Just(Action::Drain),
    ];
    prop_oneof![
        12 => step,
        2 => Just(Action::Interrupt),
        2 => Just(Action::InterruptHeld),
        2 => prop::sample::select(vec![9, 15, 11, 6]).prop_map(Action::KillHeld),
        2 => Just(Action::Input),
        1 => any::<bool>().prop_map(|is_json| Action::Complete { is_json }),
        2 => any::<bool>().prop_map(|now| Action::Status { now }),
        1 => any::<bool>().prop_map(|one| Action::GetApps { one }),
        1 => one_of_two.clone().prop_map(Action::StartService),
        1 => one_of_two.prop_map(Action::StopService),
        2 => Just(Action::Join),
        2 => any::<bool>().prop_map(|newest| Action::Leave { newest }),
        4 => now_and_then,
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![2 => Just(Kind::Clean), 3 => Just(Kind::Build), 8 => Just(Kind::Exec), 1 => Just(Kind::Code)]
}

fn malformed() -> impl Strategy<Value = Malformed> {
    prop::sample::select(vec![
        Malformed::OneFrame,
        Malformed::ThreeFrames,
        Malformed::Empty,
        Malformed::UnknownOp,
        Malformed::OpNotAscii,
        Malformed::CommandNotUtf8,
        Malformed::ServiceNotJson,
        Malformed::EventNotJson,
        Malformed::NameNotJson,
    ])
}
