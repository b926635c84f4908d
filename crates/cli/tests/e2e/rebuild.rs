//! A quorum is lost for good, and one server goes on with what it has.

use crate::servers::{Servers, alone, kontiki, run};

#[test]
fn one_survivor_becomes_a_cluster_of_its_own() {
    let _alone = alone();
    run(async {
        let mut servers = Servers::three().await;
        let mut client = servers.client(0).await;
        client.put("hello", "world", None).await.unwrap();
        client.get("hello", None).await.unwrap();
        let dir = servers.data_dir(0);
        let dir = dir.to_str().unwrap();

        let running = kontiki(&["rebuild", "--data-dir", dir, "--i-accept-data-loss"]);
        let told = String::from_utf8(running.stderr).unwrap();
        assert!(!running.status.success() && told.contains("another process"), "{told}");
        for index in 0..3 {
            servers.kill(index);
        }
        let unasked = kontiki(&["rebuild", "--data-dir", dir]);
        assert_eq!(unasked.status.code(), Some(2));
        let nobody = kontiki(&["rebuild", "--data-dir", "/nowhere", "--i-accept-data-loss"]);
        let told = String::from_utf8(nobody.stderr).unwrap();
        assert!(told.contains("/nowhere is not the data directory of a server"), "{told}");

        let rebuilt = kontiki(&["rebuild", "--data-dir", dir, "--i-accept-data-loss"]);
        let told = String::from_utf8(rebuilt.stdout).unwrap();
        assert!(rebuilt.status.success() && told.contains("ARE LOST"), "{told}");
        assert!(told.contains("is the only member of"), "{told}");

        servers.start(0);
        servers.until_ready(0).await;
        let mut client = servers.client(0).await;
        let got = client.get("hello", None).await.unwrap();
        assert_eq!(got.kvs()[0].value_str().unwrap(), "world");
        client.put("alone", "yes", None).await.unwrap();
        assert_eq!(client.member_list().await.unwrap().members().len(), 1);

        // The others come back as new members.
        servers.forget(1);
        servers.forget(2);
        let new = servers.make_joiner();
        servers.add_member(new).await;
        servers.until_ready(new).await;
        let got = servers.client(new).await.get("alone", None).await.unwrap();
        assert_eq!(got.kvs()[0].value_str().unwrap(), "yes");
    });
}
