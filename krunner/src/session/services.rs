//! Between the agent's messages and the services: requests become orders, what is told becomes replies.

use tokio::time::Instant;

use crate::service::{AppInfo, Event, ModelOrder, Order, Outcome, ServiceOrder};
use crate::wire::{App, ModelServiceRequest, ModelStatus, Reply, ServiceOutcome, ServiceRequest};

pub(super) fn start(request: ServiceRequest) -> Order {
    let ServiceRequest { name, port, ports, protocol, options } = request;
    Order::Service(ServiceOrder { name, port, ports, protocol, options, at: Instant::now() })
}

pub(super) fn start_model(request: ModelServiceRequest) -> Order {
    let ModelServiceRequest { name, model_path, service } = request;
    Order::Model(ModelOrder { name, model_path, service, at: Instant::now() })
}

/// The answer to an order for which there is no room; nobody waits for one to a stop.
pub(super) fn refusal(order: &Order, problem: &str) -> Option<Reply> {
    match order {
        Order::Service(_) | Order::Kept(_) => Some(Reply::ServiceResult(ServiceOutcome::failed(problem))),
        Order::Model(_) => Some(Reply::ModelServiceResult(ServiceOutcome::failed(problem))),
        Order::Apps(_) => Some(Reply::AppsResult(Vec::new())),
        Order::Stop(_) => None,
    }
}

pub(super) fn reply(event: Event) -> Reply {
    match event {
        Event::Service(outcome) => Reply::ServiceResult(on_wire(outcome)),
        Event::Model(outcome) => Reply::ModelServiceResult(on_wire(outcome)),
        Event::Health { name, is_healthy } => Reply::ModelServiceStatus(ModelStatus { model_name: name, is_healthy }),
        Event::Apps(apps) => Reply::AppsResult(apps.into_iter().map(app).collect()),
    }
}

fn on_wire(outcome: Outcome) -> ServiceOutcome {
    match outcome {
        Outcome::Started => ServiceOutcome::Started,
        Outcome::Running => ServiceOutcome::Running,
        Outcome::Failed(error) => ServiceOutcome::Failed { error },
    }
}

/// What is empty is left out, as clients expect it.
fn app(info: AppInfo) -> App {
    let list = |items: Vec<String>| (!items.is_empty()).then(|| items.into());
    App {
        name: info.name,
        url_template: Some(info.url_template).filter(|template| !template.is_empty()),
        allowed_arguments: list(info.allowed_arguments),
        allowed_envs: list(info.allowed_envs),
    }
}
