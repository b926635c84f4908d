//! Answers of the store as etcd's messages.
//!
//! The header of an answer is handed in, because the store knows only its revision. Inside of a
//! transaction etcd gives each answer a header with nothing but the revision, and a nested
//! transaction one with nothing at all.

use kontiki_store::{
    DeleteRangeResponse, KeyValue, PutResponse, RangeResponse, ResponseOp, TxnResponse,
};

use crate::proto::{etcdserverpb as pb, mvccpb};
use pb::{ResponseHeader, response_op::Response};

pub(crate) fn range(answer: RangeResponse, header: ResponseHeader) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: answer.kvs.into_iter().map(key_value).collect(),
        more: answer.more,
        count: answer.count,
    }
}

pub(crate) fn put(answer: PutResponse, header: ResponseHeader) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: answer.prev_kv.map(key_value) }
}

pub(crate) fn delete_range(
    answer: DeleteRangeResponse,
    header: ResponseHeader,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: answer.deleted,
        prev_kvs: answer.prev_kvs.into_iter().map(key_value).collect(),
    }
}

pub(crate) fn txn(answer: TxnResponse, header: ResponseHeader) -> pb::TxnResponse {
    pb::TxnResponse {
        header: Some(header),
        succeeded: answer.succeeded,
        responses: answer.responses.into_iter().map(op).collect(),
    }
}

fn op(answer: ResponseOp) -> pb::ResponseOp {
    let inner = |revision| ResponseHeader { revision, ..ResponseHeader::default() };
    let response = match answer {
        ResponseOp::Range(answer) => {
            let header = inner(answer.revision);
            Response::ResponseRange(range(answer, header))
        }
        ResponseOp::Put(answer) => {
            let header = inner(answer.revision);
            Response::ResponsePut(put(answer, header))
        }
        ResponseOp::DeleteRange(answer) => {
            let header = inner(answer.revision);
            Response::ResponseDeleteRange(delete_range(answer, header))
        }
        ResponseOp::Txn(answer) => Response::ResponseTxn(txn(answer, ResponseHeader::default())),
    };
    pb::ResponseOp { response: Some(response) }
}

fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}
