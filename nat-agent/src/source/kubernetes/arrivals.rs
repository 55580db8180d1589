//! What the CNI plugin has said of pods: their addresses and links, before the API shows them. The
//! kubelet writes a pod's addresses when the plugins are done, and they wait for the agent.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use nat_cni::protocol::Attachment;

use super::object::{Arrival, Pod};

/// How long the API may take to show a pod's address. A runtime may give a pod up without a word.
const LONGEST: Duration = Duration::from_secs(300);

/// What was said, the last of each pod.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    pods: BTreeMap<String, Announced>,
    count: u64,
}

#[derive(Clone, Debug)]
struct Announced {
    attachment: Attachment,
    order: u64,
    since: Duration,
}

impl Arrivals {
    /// A pod's interface was made.
    pub fn add(&mut self, attachment: Attachment, now: Duration) {
        self.count += 1;
        let announced = Announced {
            order: self.count,
            since: now,
            attachment,
        };
        let path = announced.attachment.path();
        self.pods.insert(path, announced);
    }

    /// A sandbox's interface goes.
    pub fn withdraw(&mut self, container: &str) {
        self.pods
            .retain(|_, announced| announced.attachment.container != container);
    }

    /// What was said, in order.
    pub fn attachments(&self) -> Vec<&Attachment> {
        let mut announced: Vec<&Announced> = self.pods.values().collect();
        announced.sort_by_key(|announced| announced.order);
        let announced = announced.into_iter();
        announced.map(|announced| &announced.attachment).collect()
    }

    /// Forgets what the API shows as well, and what is too old; not the pods that are `waiting`.
    pub fn forget(
        &mut self,
        pods: &BTreeMap<String, Pod>,
        waiting: &BTreeSet<String>,
        now: Duration,
    ) {
        self.pods.retain(|path, announced| {
            let pod = pods.get(path).filter(|pod| announced.is_of(pod));
            let shown = pod.is_some_and(|pod| {
                let mut addresses = announced.attachment.addresses.iter();
                pod.finished || addresses.all(|address| pod.addresses.contains(address))
            });
            let old = now.saturating_sub(announced.since) > LONGEST;
            waiting.contains(path) || !shown && !old
        });
    }

    /// The pods, with what was said of them.
    pub fn over<'a>(&self, pods: &'a BTreeMap<String, Pod>) -> Vec<Cow<'a, Pod>> {
        let pods = pods.iter().map(|(path, pod)| {
            let announced = self.pods.get(path).filter(|announced| announced.is_of(pod));
            announced.map_or(Cow::Borrowed(pod), |announced| {
                Cow::Owned(announced.over(pod))
            })
        });
        pods.collect()
    }
}

impl Announced {
    fn is_of(&self, pod: &Pod) -> bool {
        pod.is_known_as(self.attachment.uid.as_deref())
    }

    fn over(&self, pod: &Pod) -> Pod {
        let links = self.attachment.links.iter().map(|link| link.ifindex);
        let mut pod = pod.clone();
        pod.addresses.clone_from(&self.attachment.addresses);
        pod.arrival = Some(Arrival {
            order: self.order,
            links: links.collect(),
        });
        pod
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 244, 1, last])
    }

    fn attachment(uid: &str, last: u8) -> Attachment {
        Attachment {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            uid: Some(uid.to_owned()),
            container: format!("c-{uid}"),
            addresses: vec![address(last)],
            ..Attachment::default()
        }
    }

    fn pods(uid: &str, addresses: &[u8]) -> BTreeMap<String, Pod> {
        let pod = Pod {
            uid: uid.to_owned(),
            addresses: addresses.iter().copied().map(address).collect(),
            ..Pod::default()
        };
        [("shop/web-0".to_owned(), pod)].into()
    }

    fn seen(arrivals: &Arrivals, pods: &BTreeMap<String, Pod>) -> Vec<IpAddr> {
        arrivals.over(pods)[0].addresses.clone()
    }

    #[test]
    fn what_was_said_is_newer_than_what_the_api_shows() {
        let mut arrivals = Arrivals::default();
        arrivals.add(attachment("u1", 7), Duration::ZERO);
        assert_eq!(seen(&arrivals, &pods("u1", &[])), [address(7)]);
        // Its sandbox was made anew.
        assert_eq!(seen(&arrivals, &pods("u1", &[5])), [address(7)]);
        // Another pod of its name.
        assert_eq!(seen(&arrivals, &pods("u0", &[5])), [address(5)]);
        arrivals.withdraw("c-other");
        assert_eq!(arrivals.attachments(), [&attachment("u1", 7)]);
        assert_eq!(seen(&arrivals, &pods("u1", &[5])), [address(7)]);
        arrivals.withdraw("c-u1");
        assert_eq!(seen(&arrivals, &pods("u1", &[5])), [address(5)]);
    }

    #[test]
    fn it_is_forgotten_in_time() {
        let forgotten = |pods: &BTreeMap<String, Pod>, waiting: &[&str], seconds| {
            let mut arrivals = Arrivals::default();
            arrivals.add(attachment("u1", 7), Duration::ZERO);
            let waiting = waiting.iter().map(|&path| path.to_owned()).collect();
            arrivals.forget(pods, &waiting, Duration::from_secs(seconds));
            arrivals.pods.is_empty()
        };
        assert!(!forgotten(&pods("u1", &[]), &[], 10));
        assert!(!forgotten(&pods("u1", &[5]), &[], 10));
        assert!(forgotten(&pods("u1", &[7]), &[], 10), "the API shows it");
        assert!(!forgotten(&pods("u1", &[7]), &["shop/web-0"], 10));
        assert!(
            !forgotten(&pods("u2", &[7]), &[], 10),
            "that is another pod"
        );
        assert!(!forgotten(&BTreeMap::new(), &[], 10), "not seen yet");
        assert!(forgotten(&BTreeMap::new(), &[], 301));
        let mut finished = pods("u1", &[]);
        finished.get_mut("shop/web-0").unwrap().finished = true;
        assert!(forgotten(&finished, &[], 10));
    }
}
