//! A policy file as written: every key read, nothing resolved. What `read` makes of the YAML tree and `validate` turns
//! into the [`super::model`].

use guard_common::{Direction, Verdict};

use super::{
    model::{ContainerHost, Mode, Refusal},
    source::{At, Span, Text},
};

/// One file.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// The whole of it.
    pub span: Span,
    pub name: Option<Text>,
    pub include: Vec<Text>,
    pub mode: Option<At<Modes>>,
    pub groups: Vec<Group>,
    pub services: Vec<Service>,
    pub inbound: Option<Span>,
    pub outbound: Option<Span>,
    /// Of both directions, in file order.
    pub rules: Vec<Rule>,
    pub essentials: Vec<(Text, At<bool>)>,
    pub lockdown: bool,
    pub on_deny: Option<At<OnDeny>>,
    pub container_host: Option<At<ContainerHost>>,
    pub tests: Vec<Test>,
}

/// A direction that is left out is audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub inbound: Option<Mode>,
    pub outbound: Option<Mode>,
}

/// `on_deny`; what is left out is as by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnDeny {
    pub outbound: Option<Refusal>,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub name: Text,
    pub body: GroupBody,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum GroupBody {
    Items(Vec<Text>),
    File {
        path: Text,
        allow_empty: bool,
    },
    Compose {
        any_of: Vec<Text>,
        except: Vec<Text>,
    },
    /// It was wrong, which has been reported.
    Bad,
}

#[derive(Clone, Debug)]
pub struct Service {
    pub name: Text,
    pub items: Vec<Text>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub direction: Direction,
    pub position: usize,
    pub span: Span,
    pub name: Option<Text>,
    pub action: At<Verdict>,
    /// `None` where it was missing or wrong, which has been reported.
    pub remote: Option<At<Vec<Text>>>,
    pub services: Option<At<Vec<Text>>>,
    pub interface: Option<At<Vec<Text>>>,
    pub local: Option<At<Vec<Text>>>,
    pub expires: Option<Text>,
    pub comment: Option<Text>,
}

#[derive(Clone, Debug)]
pub struct Test {
    pub flow: Text,
    pub expect: At<Verdict>,
    pub rule: Option<Text>,
    pub span: Span,
}
