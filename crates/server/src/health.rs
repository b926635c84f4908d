//! The service `grpc.health.v1.Health`: whether this server can serve now.
//!
//! It can once it has been ready and as long as it knows a leader. Only the server as a whole
//! has a health, under the empty name, as in etcd.

use std::pin::Pin;

use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};
use tower_service::Service as _;

use crate::grpc;

/// Answers the health checks of one server.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    can_serve: watch::Receiver<bool>,
}

impl Health {
    /// Follows `can_serve`.
    pub(crate) fn new(can_serve: watch::Receiver<bool>) -> Self {
        Self { can_serve }
    }

    /// Answers a call of any method of the service.
    pub(crate) async fn answer(&self, call: grpc::Request) -> grpc::Response {
        let mut server = health_server::HealthServer::new(self.clone());
        match server.call(call).await {
            Ok(response) => response.map(grpc::Body::Stream),
            Err(never) => match never {},
        }
    }
}

fn response(can_serve: bool) -> HealthCheckResponse {
    let status = if can_serve { ServingStatus::Serving } else { ServingStatus::NotServing };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(*self.can_serve.borrow())))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// An unknown service may yet come to be, says the protocol, so its stream does not end.
    async fn watch(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !request.get_ref().service.is_empty() {
            let unknown = HealthCheckResponse { status: ServingStatus::ServiceUnknown.into() };
            let once = tokio_stream::once(Ok(unknown));
            return Ok(Response::new(Box::pin(once.chain(tokio_stream::pending()))));
        }
        let changes = WatchStream::new(self.can_serve.clone());
        Ok(Response::new(Box::pin(changes.map(|can_serve| Ok(response(can_serve))))))
    }
}
