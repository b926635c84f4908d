//! What a server answers to bytes that no honest client sends.

mod harness;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use bytes::Bytes;
use harness::{
    Cluster, PATIENCE,
    client::{Client, Raw},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kontiki_server::proto::etcdserverpb as pb;
use pb::request_op::Request;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};
use tonic::Code;

fn run(story: impl Future<Output = ()>) {
    harness::runtime().block_on(story);
}

async fn assert_alive(client: &mut Client) {
    let put = pb::PutRequest { key: "alive".into(), value: "yes".into(), ..Default::default() };
    client.put(put).await.expect("the server goes on");
}

/// Transactions in one another: `depth` of them. Made from the inside, for the stack's sake.
fn nested(depth: usize) -> Raw {
    let put = pb::PutRequest { key: "deep".into(), ..Default::default() };
    let op = pb::RequestOp { request: Some(Request::RequestPut(put)) };
    let mut txn = pb::TxnRequest { success: vec![op], ..Default::default() }.encode_to_vec();
    for _ in 1..depth {
        // Field 4 of an operation is a transaction, field 2 of that an operation.
        txn = prefixed(2, prefixed(4, txn));
    }
    Raw(txn)
}

/// `content` as the field `number` of a message.
fn prefixed(number: u32, mut content: Vec<u8>) -> Vec<u8> {
    let mut field = Vec::new();
    encode_key(number, WireType::LengthDelimited, &mut field);
    encode_varint(content.len() as u64, &mut field);
    field.append(&mut content);
    field
}

/// Deviation: etcd counts to 128, we stop where the decoder does, for the stack's sake. The
/// refusal is etcd's.
#[test]
fn transactions_nest_only_so_deep() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let path = "/etcdserverpb.KV/Txn";
        let answer: Result<pb::TxnResponse, _> = client.call(path, nested(40)).await;
        answer.expect("40 are few enough");
        for depth in [60, 129, 20_000] {
            let answer: Result<pb::TxnResponse, _> = client.call(path, nested(depth)).await;
            let status = answer.unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::InvalidArgument, "etcdserver: too many operations in txn request")
            );
        }
        assert_alive(&mut client).await;
        cluster.stop_all().await;
    });
}

#[test]
fn the_operations_of_a_transaction_are_counted_with_those_around_it() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let puts = |prefix: &str, count: usize| -> Vec<pb::RequestOp> {
            let put = |number| pb::PutRequest {
                key: format!("{prefix}{number}").into(),
                ..Default::default()
            };
            (0..count)
                .map(|number| pb::RequestOp { request: Some(Request::RequestPut(put(number))) })
                .collect()
        };
        let txn = |success| pb::TxnRequest { success, ..Default::default() };
        let around = |inner: usize| {
            let nested = Request::RequestTxn(txn(puts("inner", inner)));
            txn(vec![pb::RequestOp { request: Some(nested) }])
        };
        let compare = |count| pb::TxnRequest {
            compare: vec![pb::Compare { key: "k".into(), ..Default::default() }; count],
            ..Default::default()
        };

        for fits in [txn(puts("k", 128)), around(127), compare(128)] {
            client.txn(fits).await.expect("128 are few enough");
        }
        for too_many in [txn(puts("k", 129)), around(128), compare(129)] {
            let status = client.txn(too_many).await.unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::InvalidArgument, "etcdserver: too many operations in txn request")
            );
        }
        cluster.stop_all().await;
    });
}

/// Not compared with etcd 3.5.1, which crashes on a sort target that it does not know.
#[test]
fn a_sort_option_that_nobody_has_defined_is_refused() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let range =
            pb::RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
        for wrong in [
            pb::RangeRequest { sort_target: 9, ..range.clone() },
            pb::RangeRequest { sort_order: -1, ..range },
        ] {
            let status = client.range(wrong).await.unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::InvalidArgument, "etcdserver: invalid sort option")
            );
        }
        cluster.stop_all().await;
    });
}

#[test]
fn bytes_that_are_no_request_are_refused() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let mut client = cluster.client(0).await;
        let wrong: [&[u8]; 5] = [
            b"\x08\x07",             // a number where a key belongs
            b"\x0a\x05abc",          // a key that is cut short
            b"\xff\xff\xff\xff\xff", // no field at all
            b"\x0b\x0b\x0b\x0b",     // groups that nobody closes
            &[0x0b; 1_000_000],      // and a lot of them
        ];
        for bytes in wrong {
            for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Txn"] {
                let answer: Result<pb::RangeResponse, _> =
                    client.call(path, Raw(bytes.to_vec())).await;
                let status = answer.unwrap_err();
                assert_eq!(status.code(), Code::Internal, "{bytes:.20?}");
                let text = "grpc: error unmarshalling request: ";
                assert!(status.message().starts_with(text), "{status}");
            }
        }

        let version = ("client-api-version", "3.5");
        let range = pb::RangeRequest { key: Bytes::from("k"), ..Default::default() };
        client
            .call_saying::<_, pb::RangeResponse>(version, "/etcdserverpb.KV/Range", range)
            .await
            .expect("a version is welcome");
        assert_alive(&mut client).await;
        cluster.stop_all().await;
    });
}

#[test]
fn a_request_that_is_not_grpc_is_not_taken_for_one() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let stream = tokio::net::TcpStream::connect(cluster.server(0).client_addresses()[0]);
        let io = TokioIo::new(stream.await.expect("the server listens"));
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut http, connection) = handshake.await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        for content_type in [None, Some("application/json")] {
            let mut request = http::Request::post("http://localhost/etcdserverpb.KV/Range");
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            let request = request.body("{}".to_owned()).expect("a request");
            let response = http.send_request(request).await.expect("an answer");
            assert_eq!(response.status(), http::StatusCode::NOT_FOUND);
        }
        cluster.stop_all().await;
    });
}

/// Pitfall D15, for clients: nothing that comes in makes a server panic.
#[test]
fn a_connection_that_does_not_speak_http_is_closed() {
    run(async {
        let mut cluster = Cluster::start(1).await;
        let address = cluster.server(0).client_addresses()[0];
        let openings: [&[u8]; 4] = [
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x00",
            b"\0\0\0\0",
        ];
        for opening in openings {
            let closed = tokio::task::spawn_blocking(move || say_and_wait(address, opening));
            closed.await.expect("the connection is closed");
        }
        assert_alive(&mut cluster.client(0).await).await;
        cluster.stop_all().await;
    });
}

/// Sends `opening` and reads until the server closes, in whatever way and however early.
fn say_and_wait(to: SocketAddr, opening: &[u8]) {
    let mut stream = TcpStream::connect(to).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let said = stream.write_all(opening).and_then(|()| stream.shutdown(Shutdown::Write));
    let closed = said.and_then(|()| stream.read_to_end(&mut Vec::new()));
    if let Err(error) = closed {
        // What a read that waits in vain ends with.
        assert_ne!(error.kind(), ErrorKind::WouldBlock);
    }
}
