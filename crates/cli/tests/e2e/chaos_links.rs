//! Links are cut one way under load: the shapes of partition that deceive a cluster most.

use std::time::{Duration, Instant};

use crate::{
    chaos::{CLIENTS, pause},
    load::Load,
    proxy::Links,
    servers::{Servers, alone, run},
};

/// Within this, a cluster with two servers that hear each other must write again. A leader that
/// hears nobody steps down after an election timeout, and the others elect after another one.
const GAP_MAX: Duration = Duration::from_secs(4);

/// Pitfall B13, pitfall B9: a leader that is heard and hears nobody, one that hears and is not
/// heard, a follower in either position, and a ring in which everyone hears one other.
#[test]
fn one_way_partitions_neither_stop_nor_split_the_cluster() {
    let _alone = alone();
    run(async {
        let links = Links::default();
        let servers = Servers::behind(&links).await;
        let load = Load::start(&servers, CLIENTS).await;
        let shapes: [(&str, &[(usize, usize)]); 5] = [
            ("the leader hears nobody", &[(1, 0), (2, 0)]),
            ("nobody hears the leader", &[(0, 1), (0, 2)]),
            ("the leader and a follower are apart, the third sees both", &[(0, 1), (1, 0)]),
            ("a follower hears nobody", &[(0, 1), (2, 1)]),
            ("nobody hears a follower", &[(1, 0), (1, 2)]),
        ];
        for (shape, cuts) in shapes {
            pause(Duration::from_millis(300)).await;
            let leader = servers.leader().await;
            for (from, to) in cuts {
                links.cut((leader + from) % 3, (leader + to) % 3);
            }
            let gap = load.resumed_after(Instant::now() + Duration::from_millis(700)).await;
            eprintln!("{shape}: writes again after {:?}", gap + Duration::from_millis(700));
            assert!(gap < GAP_MAX, "{shape}: no write for {gap:?}");
            pause(Duration::from_millis(700)).await;
            links.mend();
            for index in 0..3 {
                servers.until_ready(index).await;
            }
        }
        let writes = load.finish().await;
        assert!(100 < writes, "only {writes} writes: this was no load");
    });
}
