//! The replies for what services answer, and for requests that are refused.

use crate::service::{ServiceCommand, ServiceEvent};
use crate::wire::{Reply, ServiceOutcome};

/// The reply to a request that does not fit into the queue. A stop request has no reply.
pub(super) fn refusal(order: &ServiceCommand, problem: &str) -> Option<Reply> {
    match order {
        ServiceCommand::Start(_) | ServiceCommand::Managed(_) => {
            Some(Reply::ServiceResult(ServiceOutcome::failed(problem)))
        }
        ServiceCommand::StartModel(_) => Some(Reply::ModelServiceResult(ServiceOutcome::failed(problem))),
        ServiceCommand::ListApps(_) => Some(Reply::AppsResult(Vec::new())),
        ServiceCommand::Stop(_) => None,
    }
}

pub(super) fn reply(event: ServiceEvent) -> Reply {
    match event {
        ServiceEvent::Service(outcome) => Reply::ServiceResult(outcome),
        ServiceEvent::Model(outcome) => Reply::ModelServiceResult(outcome),
        ServiceEvent::Health(status) => Reply::ModelServiceStatus(status),
        ServiceEvent::Apps(apps) => Reply::AppsResult(apps),
    }
}
