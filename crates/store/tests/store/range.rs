//! Ranges, as etcd 3.5.1 answers them.

use std::{path::Path, sync::Arc};

use kontiki_store::{RangeRequest, SortOrder, SortTarget, Store, StoreOptions};

use crate::support::{
    apply_compact, apply_delete, apply_put, delete, disk::MemoryDisk, keys, quiet, range, read,
    read_refusal, store,
};

/// Keys a to d, put in the order d, c, b, a, then b again: revisions 2 to 6.
fn four_keys() -> Store {
    let store = store();
    for key in ["d", "c", "b", "a"] {
        apply_put(&store, key, &format!("v{key}"));
    }
    apply_put(&store, "b", "vb2");
    store
}

fn all() -> RangeRequest {
    range("a", "z")
}

#[test]
fn an_empty_store_has_revision_1_and_no_keys() {
    let response = read(&store(), &range("\0", "\0"));
    assert_eq!((response.revision, response.count, response.more), (1, 0, false));
    assert_eq!(response.kvs, []);
}

#[test]
fn range_ends_name_one_key_a_span_the_rest_or_nothing() {
    let store = four_keys();
    assert_eq!(keys(&read(&store, &range("b", ""))), ["b"]);
    assert_eq!(keys(&read(&store, &range("b", "d"))), ["b", "c"]);
    assert_eq!(keys(&read(&store, &range("b", "\0"))), ["b", "c", "d"]);
    assert_eq!(keys(&read(&store, &range("\0", "\0"))), ["a", "b", "c", "d"]);
    for end in ["b", "a"] {
        let response = read(&store, &range("b", end));
        assert_eq!((response.count, response.kvs.len()), (0, 0), "an end at or before the key");
    }
    assert_eq!(keys(&read(&store, &range("bb", ""))), [""; 0]);
}

#[test]
fn a_key_tells_its_revisions_and_version() {
    let store = four_keys();
    let response = read(&store, &range("b", ""));
    let kv = &response.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (4, 6, 2, 0));
    assert_eq!(kv.value, "vb2");
    assert_eq!(response.revision, 6);
}

#[test]
fn the_limit_cuts_and_the_count_does_not_care() {
    let store = four_keys();
    for (limit, expected, more) in [(2, 2, true), (4, 4, false), (0, 4, false), (-3, 4, false)] {
        let response = read(&store, &RangeRequest { limit, ..all() });
        let answer = (response.kvs.len(), response.more, response.count);
        assert_eq!(answer, (expected, more, 4), "limit {limit}");
    }
}

#[test]
fn filters_come_before_the_limit_and_after_the_count() {
    let store = four_keys();
    let response = read(&store, &RangeRequest { min_mod_revision: 5, limit: 1, ..all() });
    assert_eq!((keys(&response), response.more, response.count), (vec!["a".into()], true, 4));
    let response = read(&store, &RangeRequest { max_mod_revision: 3, limit: 2, ..all() });
    assert_eq!((keys(&response).len(), response.more, response.count), (2, false, 4));
    let response = read(&store, &RangeRequest { min_create_revision: 4, ..all() });
    assert_eq!(keys(&response), ["a", "b"]);
    let response = read(&store, &RangeRequest { max_create_revision: 4, ..all() });
    assert_eq!(keys(&response), ["b", "c", "d"]);
}

#[test]
fn count_only_ignores_limit_and_filters() {
    let request = RangeRequest { count_only: true, limit: 1, min_mod_revision: 99, ..all() };
    let response = read(&four_keys(), &request);
    assert_eq!((response.count, response.more, response.kvs.len()), (4, false, 0));
}

#[test]
fn keys_only_leaves_out_the_value_and_nothing_else() {
    let store = four_keys();
    let response = read(&store, &RangeRequest { keys_only: true, ..range("b", "") });
    let kv = &response.kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (4, 6, 2));
    assert!(kv.value.is_empty());
    let by_value = RangeRequest {
        keys_only: true,
        sort_target: SortTarget::Value,
        sort_order: SortOrder::Descend,
        ..all()
    };
    let response = read(&store, &by_value);
    assert_eq!(keys(&response), ["d", "c", "b", "a"], "sorted by what is left out");
    assert!(response.kvs.iter().all(|kv| kv.value.is_empty()));
}

#[test]
fn the_whole_range_is_sorted_and_then_cut() {
    let store = four_keys();
    for (target, order, expected) in [
        (SortTarget::Key, SortOrder::None, ["a", "b"]),
        (SortTarget::Key, SortOrder::Ascend, ["a", "b"]),
        (SortTarget::Key, SortOrder::Descend, ["d", "c"]),
        (SortTarget::Mod, SortOrder::Ascend, ["d", "c"]),
        (SortTarget::Mod, SortOrder::None, ["d", "c"]),
        (SortTarget::Mod, SortOrder::Descend, ["b", "a"]),
        (SortTarget::Create, SortOrder::Descend, ["a", "b"]),
        (SortTarget::Version, SortOrder::Descend, ["b", "a"]),
        (SortTarget::Value, SortOrder::Ascend, ["a", "b"]),
    ] {
        let request = RangeRequest { sort_target: target, sort_order: order, limit: 2, ..all() };
        let response = read(&store, &request);
        assert_eq!(keys(&response), expected, "{target:?} {order:?}");
        assert!(response.more);
    }
}

#[test]
fn an_old_revision_is_read_under_the_current_header() {
    let store = four_keys();
    let response = read(&store, &RangeRequest { revision: 4, ..all() });
    assert_eq!((keys(&response), response.revision), (vec!["b".into(), "c".into(), "d".into()], 6));
    assert_eq!(response.kvs[0].value, "vb");
    for current in [0, -1, -7, 6] {
        assert_eq!(read(&store, &RangeRequest { revision: current, ..all() }).count, 4);
    }
    assert_eq!(read_refusal(&store, &RangeRequest { revision: 7, ..all() }), "FutureRevision");
}

#[test]
fn the_compacted_revision_itself_is_readable() {
    let store = four_keys();
    assert_eq!(apply_compact(&store, 5), Ok(6));
    assert_eq!(read_refusal(&store, &RangeRequest { revision: 4, ..all() }), "Compacted");
    let response = read(&store, &RangeRequest { revision: 5, ..range("b", "") });
    assert_eq!(response.kvs[0].value, "vb");
}

#[test]
fn a_deleted_key_is_there_before_and_not_after() {
    let store = four_keys();
    apply_delete(&store, delete("c", ""));
    assert_eq!(read(&store, &range("c", "")).count, 0);
    assert_eq!(read(&store, &RangeRequest { revision: 6, ..range("c", "") }).count, 1);
    apply_put(&store, "c", "again");
    let kv = read(&store, &range("c", "")).kvs.remove(0);
    assert_eq!((kv.create_revision, kv.version), (8, 1), "a new life");
    assert_eq!(read(&store, &RangeRequest { revision: 7, ..range("c", "") }).count, 0);
}

/// More keys than one step looks at, and none of the values in memory.
#[test]
fn a_large_range_is_read_in_steps_at_one_revision() {
    let options = StoreOptions { value_cache_bytes: 0, ..quiet() };
    let store = Store::in_memory(options).unwrap();
    for n in 0..2500 {
        apply_put(&store, &format!("k{n:05}"), &format!("v{n}"));
    }
    store.flush().unwrap();
    for (order, first) in [(SortOrder::Ascend, 0), (SortOrder::Descend, 2499)] {
        let request = RangeRequest { sort_order: order, ..range("k", "l") };
        let response = read(&store, &request);
        assert_eq!((response.count, response.kvs.len()), (2500, 2500));
        let expected = format!("v{first}");
        assert_eq!(response.kvs[0].value, expected.as_bytes());
        assert!(response.kvs.iter().all(|kv| kv.key[2..].ends_with(&kv.value[1..])));
    }
    let limited = RangeRequest { limit: 3, ..range("k", "l") };
    assert_eq!(read(&store, &limited).count, 2500);
    assert_eq!(keys(&read(&store, &limited)), ["k00000", "k00001", "k00002"]);
}

/// What a read had to fetch goes back into memory a little later. By then it may be old.
#[test]
fn a_value_that_was_fetched_is_not_shown_for_a_later_one() {
    let disk = MemoryDisk::default();
    let open = || {
        let options = StoreOptions { value_cache_bytes: 1000, ..quiet() };
        Store::open_on(Arc::new(disk.clone()), Path::new("/kv"), options).unwrap()
    };
    let store = open();
    apply_put(&store, "k", "first");
    store.close().unwrap();
    let store = open(); // with nothing in memory
    assert_eq!(read(&store, &range("k", "")).kvs[0].value, "first");
    let later = "x".repeat(500); // too long for the memory there is
    apply_put(&store, "k", &later);
    store.flush().unwrap();
    assert_eq!(read(&store, &range("k", "")).kvs[0].value, later);
}
