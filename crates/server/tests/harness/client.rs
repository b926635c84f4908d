//! A client that says exactly what it is told to, and shows exactly what it hears.

use std::net::SocketAddr;

use kontiki_server::proto::etcdserverpb as pb;
use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Code and text of a refusal.
pub(crate) type Refused = (Code, String);

/// A connection to one server.
pub(crate) struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{to}")).expect("an address");
        let channel = endpoint.connect().await.expect("the server listens");
        let grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        Self { grpc }
    }

    /// One unary call of the method at `path`.
    pub(crate) async fn call<Q, A>(&mut self, path: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.call_with(path, Request::new(request)).await
    }

    /// The same with one line of metadata.
    pub(crate) async fn call_saying<Q, A>(
        &mut self,
        (key, value): (&'static str, &'static str),
        path: &str,
        request: Q,
    ) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut request = Request::new(request);
        request.metadata_mut().insert(key, AsciiMetadataValue::from_static(value));
        self.call_with(path, request).await
    }

    async fn call_with<Q, A>(&mut self, path: &str, request: Request<Q>) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.expect("the connection holds");
        let path = path.parse().expect("a path");
        let answer = self.grpc.unary(request, path, ProstCodec::default()).await;
        answer.map(tonic::Response::into_inner)
    }

    /// One unary call of `Service/Method`, and the code and text of its refusal.
    pub(crate) async fn ask<Q, A>(&mut self, method: &str, request: Q) -> Result<A, Refused>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let answer = self.call(&format!("/etcdserverpb.{method}"), request).await;
        answer.map_err(|status| (status.code(), status.message().to_owned()))
    }

    pub(crate) async fn range(
        &mut self,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Status> {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    pub(crate) async fn put(&mut self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        self.call("/etcdserverpb.KV/Put", request).await
    }

    pub(crate) async fn delete_range(
        &mut self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        self.call("/etcdserverpb.KV/DeleteRange", request).await
    }

    pub(crate) async fn txn(&mut self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.call("/etcdserverpb.KV/Txn", request).await
    }

    pub(crate) async fn compact(
        &mut self,
        request: pb::CompactionRequest,
    ) -> Result<pb::CompactionResponse, Status> {
        self.call("/etcdserverpb.KV/Compact", request).await
    }

    pub(crate) async fn status(&mut self) -> Result<pb::StatusResponse, Status> {
        self.call("/etcdserverpb.Maintenance/Status", pb::StatusRequest {}).await
    }

    pub(crate) async fn member_list(&mut self) -> Result<pb::MemberListResponse, Status> {
        let request = pb::MemberListRequest { linearizable: true };
        self.call("/etcdserverpb.Cluster/MemberList", request).await
    }

    /// Asks after the health of `service`: 1 is serving, 2 is not.
    pub(crate) async fn health(&mut self, service: &str) -> Result<i32, Status> {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let answer: tonic_health::pb::HealthCheckResponse =
            self.call("/grpc.health.v1.Health/Check", request).await?;
        Ok(answer.status)
    }
}

/// Bytes that are sent as they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: WireType,
        _: &mut impl Buf,
        _: DecodeContext,
    ) -> Result<(), DecodeError> {
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
