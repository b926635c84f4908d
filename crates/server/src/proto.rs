//! The messages of etcd's API, made by `build.rs` from the files in `proto/`.

macro_rules! package {
    ($name:ident, $file:literal $(, $lint:path)*) => {
        #[expect(missing_docs, $($lint,)* reason = "generated; the .proto files say what it is")]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}

package!(authpb, "authpb.rs", clippy::exhaustive_enums);
package!(etcdserverpb, "etcdserverpb.rs", clippy::exhaustive_enums);
package!(mvccpb, "mvccpb.rs", clippy::exhaustive_enums);
package!(v3electionpb, "v3electionpb.rs");
package!(v3lockpb, "v3lockpb.rs");

/// The messages of our own service, `kontikipb.Cluster`: what etcd's API has no words for.
pub mod kontikipb {
    /// Asks that a new server takes the place of a member once it has caught up. Answered by a
    /// `MemberAddResponse`.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    #[non_exhaustive]
    pub struct MemberReplaceRequest {
        /// The id of the member that goes.
        #[prost(uint64, tag = "1")]
        pub id: u64,
        /// Where the others find the new server; if empty, where they found the old one.
        #[prost(string, repeated, tag = "2")]
        pub peer_urls: Vec<String>,
    }

    impl MemberReplaceRequest {
        /// The request that the member `id` is replaced by a new server at `peer_urls`.
        #[must_use]
        pub fn new(id: u64, peer_urls: Vec<String>) -> Self {
            Self { id, peer_urls }
        }
    }
}
