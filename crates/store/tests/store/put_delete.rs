//! Puts and deletions, as etcd 3.5.1 answers them.

use kontiki_store::{DeleteRangeRequest, PutRequest, Request, Response};

use crate::support::{
    apply, apply_delete, apply_put, delete, keys, put, range, read, refusal, store,
};

fn request(put: PutRequest) -> Request {
    Request::Put(put)
}

#[test]
fn the_same_value_again_is_a_new_revision() {
    let store = store();
    assert_eq!(apply_put(&store, "k", "v"), 2);
    assert_eq!(apply_put(&store, "k", "v"), 3);
    let kv = read(&store, &range("k", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
}

#[test]
fn prev_kv_is_what_was_there() {
    let store = store();
    let with_prev = request(PutRequest { prev_kv: true, ..put("k", "2") });
    let Ok(Response::Put(first)) = apply(&store, &with_prev) else { panic!() };
    assert_eq!((first.revision, first.prev_kv), (2, None));
    let Ok(Response::Put(second)) = apply(&store, &with_prev) else { panic!() };
    let prev = second.prev_kv.unwrap();
    assert_eq!((prev.value.as_ref(), prev.mod_revision, prev.version), (&b"2"[..], 2, 1));
}

#[test]
fn ignore_value_keeps_it_and_needs_a_key() {
    let store = store();
    let keep = request(PutRequest { ignore_value: true, ignore_lease: true, ..put("k", "") });
    assert_eq!(apply(&store, &keep), Err("KeyNotFound"));
    assert_eq!(store.revision(), 1, "a refusal changes nothing");
    apply_put(&store, "k", "old");
    assert!(apply(&store, &keep).is_ok(), "both flags together are allowed");
    let kv = read(&store, &range("k", "")).kvs.remove(0);
    assert_eq!((kv.value.as_ref(), kv.version, kv.mod_revision), (&b"old"[..], 2, 3));
    apply_delete(&store, delete("k", ""));
    assert_eq!(apply(&store, &keep), Err("KeyNotFound"), "a tombstone is no key");
}

#[test]
fn an_unknown_lease_is_refused_before_a_missing_key() {
    let store = store();
    let both = PutRequest { lease: 7, ignore_value: true, ..put("k", "") };
    assert_eq!(apply(&store, &request(both)), Err("LeaseNotFound"));
    assert_eq!(store.revision(), 1);
}

#[test]
fn a_refusal_in_a_batch_stops_nothing_else() {
    let store = store();
    let batch = [
        (1, 1, request(put("a", "1"))),
        (2, 1, request(PutRequest { lease: 7, ..put("b", "1") })),
        (4, 2, request(put("c", "1"))),
    ];
    let responses = store.apply(&batch, (6, 2)).unwrap();
    assert!(responses[0].is_ok() && responses[2].is_ok());
    assert_eq!(refusal(responses[1].as_ref().unwrap_err()), "LeaseNotFound");
    assert_eq!(keys(&read(&store, &range("a", "z"))), ["a", "c"]);
    assert_eq!((store.applied(), store.revision()), ((6, 2), 3), "blank entries count too");
}

#[test]
fn deleting_nothing_keeps_the_revision() {
    let store = store();
    apply_put(&store, "k", "v");
    let response = apply_delete(&store, DeleteRangeRequest { prev_kv: true, ..delete("x", "") });
    assert_eq!((response.revision, response.deleted, response.prev_kvs.len()), (2, 0, 0));
    let response = apply_delete(&store, delete("z", "a"));
    assert_eq!((response.revision, response.deleted), (2, 0), "an empty span");
}

#[test]
fn a_deletion_takes_one_revision_for_all_its_keys() {
    let store = store();
    for key in ["c", "a", "b", "d"] {
        apply_put(&store, key, key);
    }
    let response = apply_delete(&store, DeleteRangeRequest { prev_kv: true, ..delete("a", "d") });
    assert_eq!((response.revision, response.deleted), (6, 3));
    let prev: Vec<_> = response.prev_kvs.iter().map(|kv| &kv.key[..]).collect();
    assert_eq!(prev, [b"a", b"b", b"c"]);
    assert_eq!(store.revision(), 6);
    let rest = apply_delete(&store, delete("a", "\0"));
    assert_eq!((rest.revision, rest.deleted), (7, 1));
}

/// Applying twice would corrupt the data: the caller has lost its place in the log.
#[test]
#[should_panic(expected = "command 1 after 1 has been applied")]
fn a_command_is_not_applied_twice() {
    let store = store();
    let batch = [(1, 1, request(put("k", "v")))];
    store.apply(&batch, (1, 1)).unwrap();
    store.apply(&batch, (1, 1)).unwrap();
}
