//! Converts the agent's requests to service requests, and service events to replies.

use tokio::time::Instant;

use crate::service::{AppInfo, ServiceCommand, ServiceEvent, StartModel, StartOutcome, StartService};
use crate::wire::{AppEntry, ModelServiceRequest, ModelStatus, Reply, ServiceOutcome, ServiceRequest};

pub(super) fn start(request: ServiceRequest) -> ServiceCommand {
    let ServiceRequest { name, port, ports, protocol, options, launch_timeout } = request;
    ServiceCommand::Start(StartService { name, port, ports, protocol, options, launch_timeout, at: Instant::now() })
}

pub(super) fn start_model(request: ModelServiceRequest) -> ServiceCommand {
    let ModelServiceRequest { name, model_path, service } = request;
    ServiceCommand::StartModel(StartModel { name, model_path, service, at: Instant::now() })
}

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
        ServiceEvent::Service(outcome) => Reply::ServiceResult(on_wire(outcome)),
        ServiceEvent::Model(outcome) => Reply::ModelServiceResult(on_wire(outcome)),
        ServiceEvent::Health { name, is_healthy } => {
            Reply::ModelServiceStatus(ModelStatus { model_name: name, is_healthy })
        }
        ServiceEvent::Apps(apps) => Reply::AppsResult(apps.into_iter().map(app).collect()),
    }
}

fn on_wire(outcome: StartOutcome) -> ServiceOutcome {
    match outcome {
        StartOutcome::Started => ServiceOutcome::Started,
        StartOutcome::Running => ServiceOutcome::Running,
        StartOutcome::Failed(error) => ServiceOutcome::Failed { error },
    }
}

/// Empty fields are omitted, as clients expect.
fn app(info: AppInfo) -> AppEntry {
    let list = |items: Vec<String>| (!items.is_empty()).then(|| items.into());
    AppEntry {
        name: info.name,
        url_template: Some(info.url_template).filter(|template| !template.is_empty()),
        allowed_arguments: list(info.allowed_arguments),
        allowed_envs: list(info.allowed_envs),
    }
}
