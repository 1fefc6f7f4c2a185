//! What a read answers, at any zxid that was reached (§3.3, §3.6).

use zkraft::wire::request::SubRequest;
use zkraft::wire::{Answer, ErrorCode, Id, Request, SessionId, SubAnswer, Text, Zxid, perms};

use super::rules::{check_acl, mask};
use super::{Kind, Model, Reply, Znode};

impl Model {
    /// What a read at this zxid answers (§3.3, §3.6).
    pub fn read(&self, at: Zxid, request: &Request, session: SessionId, ids: &[Id]) -> Reply {
        let readable = |path: &str| {
            let znode = self.at(at, path).ok_or(ErrorCode::NoNode)?;
            check_acl(&znode.acl, perms::READ, ids)?;
            Ok(znode)
        };
        let names = |znode: &Znode| {
            znode
                .children
                .iter()
                .map(|name| Text::from(&**name))
                .collect()
        };
        match request {
            Request::Exists { path, .. } => {
                if path.contains('\0') {
                    return Err(ErrorCode::BadArguments);
                }
                readable(path).map(|znode| Answer::Stat(znode.stat()))
            }
            Request::GetData { path, .. } => {
                readable(path).map(|znode| Answer::Data(znode.data.clone(), znode.stat()))
            }
            Request::GetChildren {
                path, with_stat, ..
            } => readable(path).map(|znode| {
                if *with_stat {
                    Answer::ChildrenStat(names(znode), znode.stat())
                } else {
                    Answer::Children(names(znode))
                }
            }),
            Request::GetAllChildrenNumber { path } => {
                readable(path)?;
                let prefix = if path.len() <= 1 {
                    "/".into()
                } else {
                    format!("{path}/")
                };
                let below = self.all_at(at, &prefix).filter(|(other, _)| *other != "/");
                let count = below.count();
                // By its empty name the root is counted itself, as ZooKeeper 3.9.5 was seen to do.
                Ok(Answer::Number(count as i32 + i32::from(path.is_empty())))
            }
            Request::GetAcl { path } => {
                let znode = self.at(at, path).ok_or(ErrorCode::NoNode)?;
                check_acl(&znode.acl, perms::READ | perms::ADMIN, ids)?;
                let admin = check_acl(&znode.acl, perms::ADMIN, ids).is_ok();
                let shown = znode
                    .acl
                    .iter()
                    .map(|entry| if admin { entry.clone() } else { mask(entry) });
                Ok(Answer::Acl(shown.collect(), znode.stat()))
            }
            Request::GetEphemerals { prefix } => {
                let prefix = prefix
                    .as_ref()
                    .map(|prefix| prefix.trim())
                    .unwrap_or_default();
                let own = |znode: &Znode| znode.kind == Kind::Ephemeral(session);
                let paths = self.all_at(at, prefix).filter(|(_, znode)| own(znode));
                Ok(Answer::Children(
                    paths.map(|(path, _)| path.into()).collect(),
                ))
            }
            Request::MultiRead(operations) => {
                let one = |operation: &SubRequest| match operation {
                    SubRequest::GetData { path } => match readable(path) {
                        Ok(znode) => SubAnswer::GetData(znode.data.clone(), znode.stat()),
                        Err(error) => SubAnswer::Error(Some(error)),
                    },
                    SubRequest::GetChildren { path } => match readable(path) {
                        Ok(znode) => SubAnswer::GetChildren(names(znode)),
                        Err(error) => SubAnswer::Error(Some(error)),
                    },
                    write => panic!("{write:?} in a multiRead"),
                };
                Ok(Answer::Multi(operations.iter().map(one).collect()))
            }
            other => panic!("{other:?} is not a read of the tree"),
        }
    }
}
