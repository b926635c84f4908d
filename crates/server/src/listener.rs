//! The clients' sockets: HTTP/2 and HTTP/1.1 without TLS, one task for each connection. How it
//! begins tells which it is; only gRPC needs HTTP/2.
//!
//! Settings follow etcd's where a client could tell, and the measurements of
//! `docs/performance.md` where it could not.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};

use crate::service::{self, Service};

/// How much of a request may be on its way before it is taken: enough for the largest request
/// without a stop. A guess; a window that adapts costs a ping for each measurement.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// The same for all requests of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// etcd's `--grpc-keepalive-interval` and `--grpc-keepalive-timeout`.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Calls in flight have this long to end when the server stops. A guess.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait when the system has no socket to give: it has none for the moment, and to
/// ask at once again would keep the thread busy.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Takes connections on `listener` until `is_stopping` turns true, then lets calls in flight
/// end.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Arc<Service>,
    streams_max: u32,
    mut is_stopping: watch::Receiver<bool>,
) {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new());
    http.http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(streams_max)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .auto_date_header(false);

    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut is_stopping) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (http, service) = (http.clone(), Arc::clone(&service));
                    connections.spawn(converse(http, stream, service, is_stopping.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    time::sleep(ACCEPT_BACKOFF).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let drained =
        time::timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::info!(connections = connections.len(), "closing connections with open calls");
    }
}

/// Serves one connection to its end.
async fn converse(
    http: auto::Builder<TokioExecutor>,
    stream: TcpStream,
    service: Arc<Service>,
    mut is_stopping: watch::Receiver<bool>,
) {
    // Without it an answer waits for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot turn off Nagle's algorithm");
    }
    let answer = service_fn(move |call| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service::answer(&service, call).await) }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stopped(&mut is_stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client that goes away, or that does not speak HTTP/2. Nobody has to do anything.
        tracing::debug!(%error, "a connection ended");
    }
}

/// Waits until the server stops. A sender that is gone means the same.
async fn stopped(is_stopping: &mut watch::Receiver<bool>) {
    drop(is_stopping.wait_for(|is_stopping| *is_stopping).await);
}
