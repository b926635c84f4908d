//! What is answered to HTTP that is not gRPC, on the same port: health, metrics, version.
//!
//! Paths, bodies and status codes are etcd's, for load balancers, kubelets and Prometheus to be
//! at home. HTTP/1.1 and HTTP/2 are told apart by how a connection begins, gRPC from the rest
//! by its content type.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderValue, Method, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use kontiki_store::RangeRequest;

use crate::{
    grpc::{self, Body, Response},
    maintenance::API_VERSION,
    metrics,
    service::Service,
    status::{Failure, Refusal},
};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Answers one request.
pub(crate) async fn answer(service: &Arc<Service>, request: grpc::Request) -> Response {
    let path = request.uri().path().to_owned();
    let query = Query(request.uri().query().unwrap_or_default());
    let mut answer = match path.as_str() {
        _ if !is_known(&path) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        _ if *request.method() != Method::GET => {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            answer
        }
        "/health" => health(service, &query).await,
        "/metrics" => metrics_text(service).await,
        "/version" => respond(
            StatusCode::OK,
            JSON,
            format!(
                "{{\"etcdserver\":\"{API_VERSION}\",\"etcdcluster\":\"{API_VERSION}\",\
                 \"storage\":\"{API_VERSION}\"}}"
            ),
        ),
        path => checks(service, path, &query).await,
    };
    // etcd's too, on every answer.
    let headers = [
        ("access-control-allow-headers", "accept, content-type, authorization"),
        ("access-control-allow-methods", "POST, GET, OPTIONS, PUT, DELETE"),
        ("access-control-allow-origin", "*"),
    ];
    for (name, value) in headers {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn is_known(path: &str) -> bool {
    let is_check = |prefix, checks: &[Check]| {
        path.strip_prefix(prefix).is_some_and(|rest| {
            rest.is_empty() || checks.iter().any(|check| rest.strip_prefix('/') == Some(check.0))
        })
    };
    matches!(path, "/health" | "/metrics" | "/version")
        || is_check("/livez", LIVE)
        || is_check("/readyz", READY)
}

/// The part of a URL after its question mark.
struct Query<'a>(&'a str);

impl Query<'_> {
    /// All values of `name`. None of those that are asked for needs an escape.
    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value)
    }

    fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }
}

/// `GET /health`: whether this server can serve, or with `serializable=true` whether it could by
/// itself. Its own alarms make it unhealthy, unless `exclude` names them; those of the others do
/// not, unlike in etcd, for it serves on.
async fn health(service: &Arc<Service>, query: &Query<'_>) -> Response {
    let is_local = query.all("serializable").any(|value| value == "true");
    let mut alarms = service.roster.own_alarms().kinds().map(|kind| kind.as_str_name());
    let alarm = alarms.find(|name| query.all("exclude").all(|excluded| excluded != *name));
    let reason = if let Some(name) = alarm {
        Some(format!("ALARM {name}"))
    } else if !is_local && service.soft_state().leader.is_none() {
        Some("RAFT NO LEADER".to_owned())
    } else {
        read(service, is_local).await.err().map(|why| format!("RANGE ERROR:{why}"))
    };
    service.meters.health(reason.is_none());
    match reason {
        None => respond(StatusCode::OK, TEXT, "{\"health\":\"true\",\"reason\":\"\"}"),
        Some(reason) => {
            let body = format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n");
            respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
        }
    }
}

/// Whether a key can be read: any key.
async fn read(service: &Service, is_local: bool) -> Result<(), String> {
    let told = |Failure(status)| status.message().to_owned();
    if !is_local {
        if service.roster.is_learner() {
            return Err(Refusal::NotForLearners.message().to_owned());
        }
        service.read_barrier().await.map_err(told)?;
    } else {
        service.check_local().map_err(told)?;
    }
    let request = RangeRequest { key: "health".into(), ..RangeRequest::default() };
    service.noted(service.store.range(&request)).map(drop).map_err(|error| told(error.into()))
}

/// One thing that `/livez` or `/readyz` looks at, by its name.
#[derive(Clone, Copy)]
struct Check(&'static str);

const LIVE: &[Check] = &[Check("serializable_read")];
const READY: &[Check] = &[
    Check("data_corruption"),
    Check("serializable_read"),
    Check("linearizable_read"),
    Check("non_learner"),
];

impl Check {
    async fn run(self, service: &Service) -> Result<(), String> {
        match self.0 {
            "serializable_read" => read(service, true).await,
            "linearizable_read" => read(service, false).await,
            "non_learner" if service.roster.is_learner() => Err("this server is a learner".into()),
            "data_corruption" if service.roster.own_alarms().corrupt => {
                Err("the store was damaged and is being fetched from the others".into())
            }
            "data_corruption" => service.store.check().map_err(|fatal| fatal.to_string()),
            _ => Ok(()),
        }
    }
}

/// `GET /livez`, `GET /readyz`, and each of their checks by itself.
async fn checks(service: &Service, path: &str, query: &Query<'_>) -> Response {
    let (name, one) = match path.split_at(1).1.split_once('/') {
        Some((name, one)) => (name, Some(one)),
        None => (path.split_at(1).1, None),
    };
    let all = if name == "livez" { LIVE } else { READY };
    let mut report = String::new();
    let mut is_ok = true;
    for check in all {
        if one.is_some_and(|one| one != check.0) || query.all("exclude").any(|out| out == check.0) {
            continue;
        }
        let line = match check.run(service).await {
            Ok(()) => format!("[+]{} ok\n", check.0),
            Err(why) => {
                is_ok = false;
                format!("[-]{} failed: {why}\n", check.0)
            }
        };
        report.push_str(&line);
    }
    if !is_ok {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("{report}{name} check failed\n"));
    }
    if query.has("verbose") {
        return text(StatusCode::OK, format!("{report}ok\n"));
    }
    text(StatusCode::OK, "ok\n")
}

async fn metrics_text(service: &Service) -> Response {
    let mut body = String::with_capacity(16 << 10);
    if let Err(error) = metrics::write(service, &mut body).await {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
    }
    respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    respond(status, TEXT, body)
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(Body::Plain(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_known() {
        for path in ["/health", "/livez", "/livez/serializable_read", "/readyz/non_learner"] {
            assert!(is_known(path), "{path}");
        }
        for path in ["/", "", "/healthz", "/livez/non_learner", "/readyz/", "/livezx", "/v3/kv/put"]
        {
            assert!(!is_known(path), "{path}");
        }
    }

    #[test]
    fn a_query_may_name_a_thing_twice() {
        let query = Query("exclude=a&verbose&exclude=b");
        assert_eq!(query.all("exclude").collect::<Vec<_>>(), ["a", "b"]);
        assert!(query.has("verbose") && !query.has("serializable"));
    }
}
