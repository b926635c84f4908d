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
