//! Transactions of nf_tables, by netlink, in the calling thread's namespace: everything in one takes
//! effect at the same moment, or nothing does.
//!
//! Names and numbers are those of Linux, include/uapi/linux/netfilter/nf_tables.h; what each
//! expression does is described in nft(8).

mod rule;

use std::{io, net::Ipv4Addr, time::Duration};

use netlink_bindings::{
    nftables::{Chained, ExprOps, Nfgenmsg, PushSetelemListElemAttrs, Request, SetFlags},
    traits::Pusher,
    utils::{finalize_nested_header, push_header, push_nested_header},
};
use netlink_socket2::NetlinkSocket;
use nix::libc;

pub(super) use self::rule::{Direction, End, Rule};

/// A family of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    Ip,
    /// IPv4 and IPv6.
    Inet,
    /// Frames as they arrive on one device.
    Netdev,
}

impl Family {
    const fn number(self) -> u8 {
        let number = match self {
            Self::Ip => libc::NFPROTO_IPV4,
            Self::Inet => libc::NFPROTO_INET,
            Self::Netdev => libc::NFPROTO_NETDEV,
        };
        number as u8
    }
}

/// Where a chain gets its packets from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// What arrives on this device, before anything else sees it.
    Ingress(&'static str),
    /// What arrives, before it is routed, and before connections are tracked.
    Prerouting,
    /// What is for the namespace itself.
    Input,
    /// What passes through.
    Forward,
    /// What passes through, before [`Hook::Forward`] is asked.
    BeforeForward,
    /// What the namespace itself sends.
    Output,
    /// The destination of new connections is chosen.
    DestinationNat,
    /// The source of new connections is chosen.
    SourceNat,
}

impl Hook {
    /// Number, priority, type.
    const fn facts(self) -> (u32, i32, &'static str) {
        match self {
            Self::Ingress(_) => (libc::NF_NETDEV_INGRESS as u32, 0, "filter"),
            Self::Prerouting => (libc::NF_INET_PRE_ROUTING as u32, -300, "filter"),
            Self::Input => (libc::NF_INET_LOCAL_IN as u32, 0, "filter"),
            Self::Forward => (libc::NF_INET_FORWARD as u32, 0, "filter"),
            Self::BeforeForward => (libc::NF_INET_FORWARD as u32, -10, "filter"),
            Self::Output => (libc::NF_INET_LOCAL_OUT as u32, 0, "filter"),
            Self::DestinationNat => (libc::NF_INET_PRE_ROUTING as u32, -100, "nat"),
            Self::SourceNat => (libc::NF_INET_POST_ROUTING as u32, 100, "nat"),
        }
    }
}

/// What becomes of a packet that no rule decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// It goes on.
    Accept,
    /// It is gone.
    Drop,
}

/// A set and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// IPv4 addresses.
    Addresses(Vec<Ipv4Addr>),
    /// No two of them overlap.
    Services(Vec<Services>),
    /// IPv4 addresses, each for its time.
    Expiring(Vec<(Ipv4Addr, Duration)>),
}

impl Elements {
    fn is_empty(&self) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.is_empty(),
            Self::Services(services) => services.is_empty(),
            Self::Expiring(addresses) => addresses.is_empty(),
        }
    }
}

/// First and last address, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Services {
    pub addresses: (Ipv4Addr, Ipv4Addr),
    pub protocols: (u8, u8),
    pub ports: (u16, u16),
}

/// Attributes of which the bindings have other numbers than the kernel, because the description that
/// they are made from leaves one out before them.
const NFTA_SET_ELEM_KEY_END: u16 = 10;
/// Big-endian for the kernel, host order in the bindings.
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_DATA_VALUE: u16 = 1;

/// A table under construction.
pub(super) struct Transaction {
    chained: Chained<'static>,
    family: Family,
    table: String,
    messages: u32,
}

impl Transaction {
    /// Changes an existing table.
    pub fn change(family: Family, table: &str) -> Self {
        let mut transaction =
            Self { chained: Chained::new(1), family, table: table.to_owned(), messages: 1 };
        let header = batch_header();
        transaction.chained.request().op_batch_begin_do(&header);
        transaction
    }

    /// Makes a table, in place of one of this name that may be there.
    pub fn replace(family: Family, table: &str) -> Self {
        let mut transaction = Self::change(family, table);
        // Removing what is not there would be an error.
        transaction.replace_also(table);
        transaction
    }

    /// From here on about another table, in place of one of this name that may be there.
    pub fn replace_also(&mut self, table: &str) {
        table.clone_into(&mut self.table);
        self.make_table();
        self.remove_table();
        self.make_table();
    }

    /// Removes a table that may be there.
    pub fn remove(family: Family, table: &str) -> Self {
        let mut transaction = Self::change(family, table);
        transaction.make_table();
        transaction.remove_table();
        transaction
    }

    fn remove_table(&mut self) {
        let (header, table) = (self.header(), self.table.clone());
        self.next().op_deltable_do(&header).encode().push_name_bytes(table.as_bytes());
    }

    fn make_table(&mut self) {
        let (header, table) = (self.header(), self.table.clone());
        self.next().set_create().op_newtable_do(&header).encode().push_name_bytes(table.as_bytes());
    }

    /// A chain that only rules lead to.
    pub fn chain(&mut self, name: &str) {
        let (header, table) = (self.header(), self.table.clone());
        let mut request = self.next().set_create().op_newchain_do(&header);
        request.encode().push_table_bytes(table.as_bytes()).push_name_bytes(name.as_bytes());
    }

    /// A chain that gets its packets from `hook`.
    pub fn base_chain(&mut self, name: &str, hook: Hook, otherwise: Otherwise) {
        let (header, table) = (self.header(), self.table.clone());
        let (number, priority, kind) = hook.facts();
        let policy = match otherwise {
            Otherwise::Accept => libc::NF_ACCEPT,
            Otherwise::Drop => libc::NF_DROP,
        };
        let mut request = self.next().set_create().op_newchain_do(&header);
        let mut hooked = request
            .encode()
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(name.as_bytes())
            .nested_hook()
            .push_num(number)
            .push_priority(priority);
        if let Hook::Ingress(device) = hook {
            hooked = hooked.push_dev_bytes(device.as_bytes());
        }
        hooked.end_nested().push_type_bytes(kind.as_bytes()).push_policy(policy.cast_unsigned());
    }

    /// A set of what `elements` is of, with what it holds. `id` is its own in this transaction.
    pub fn set(&mut self, name: &str, id: u32, elements: &Elements) {
        // libnftables, include/datatype.h: what `nft list ruleset` shows it as.
        const IPV4_ADDR: u32 = 7;
        const INET_PROTO: u32 = 12;
        const INET_SERVICE: u32 = 13;
        let (header, table) = (self.header(), self.table.clone());
        let mut request = self.next().set_create().op_newset_do(&header);
        let set = request
            .encode()
            .push_table_bytes(table.as_bytes())
            .push_name_bytes(name.as_bytes())
            .push_id(id);
        match elements {
            Elements::Addresses(_) => {
                set.push_key_type(IPV4_ADDR).push_key_len(4);
            }
            Elements::Expiring(_) => {
                set.push_flags(SetFlags::Timeout as u32).push_key_type(IPV4_ADDR).push_key_len(4);
            }
            Elements::Services(_) => {
                set.push_flags(SetFlags::Interval as u32 | SetFlags::Concat as u32)
                    .push_key_type((((IPV4_ADDR << 6) | INET_PROTO) << 6) | INET_SERVICE)
                    .push_key_len(u32::from(KEY_BYTES))
                    .nested_desc()
                    .nested_concat()
                    .nested_elem()
                    .push_len(4)
                    .end_nested()
                    .nested_elem()
                    .push_len(1)
                    .end_nested()
                    .nested_elem()
                    .push_len(2);
            }
        }
        self.add_elements(name, elements);
    }

    /// Puts `elements` in place of what a set holds.
    pub fn refill(&mut self, name: &str, elements: &Elements) {
        let (header, table) = (self.header(), self.table.clone());
        let mut request = self.next().op_delsetelem_do(&header);
        request.encode().push_table_bytes(table.as_bytes()).push_set_bytes(name.as_bytes());
        self.add_elements(name, elements);
    }

    /// Puts `elements` into a set, or keeps those that are there for as long as is said now.
    pub fn renew(&mut self, name: &str, elements: &Elements) {
        if elements.is_empty() {
            return;
        }
        // An element that is there would keep its old time, and one that is not cannot be removed.
        self.add_elements(name, elements);
        self.remove_elements(name, elements);
        self.add_elements(name, elements);
    }

    fn remove_elements(&mut self, name: &str, elements: &Elements) {
        let (header, table) = (self.header(), self.table.clone());
        let mut request = self.next().op_delsetelem_do(&header);
        let list = request
            .encode()
            .push_table_bytes(table.as_bytes())
            .push_set_bytes(name.as_bytes())
            .nested_elements();
        push_elements(list, elements);
    }

    fn add_elements(&mut self, name: &str, elements: &Elements) {
        if elements.is_empty() {
            return;
        }
        let (header, table) = (self.header(), self.table.clone());
        let mut request = self.next().set_create().op_newsetelem_do(&header);
        let list = request
            .encode()
            .push_table_bytes(table.as_bytes())
            .push_set_bytes(name.as_bytes())
            .nested_elements();
        push_elements(list, elements);
    }

    /// A rule at the end of a chain.
    pub fn rule(&mut self, chain: &str) -> Rule<'_> {
        let (header, table) = (self.header(), self.table.clone());
        let expressions = self
            .next()
            .set_append()
            .set_create()
            .op_newrule_do(&header)
            .into_encoder()
            .push_table_bytes(table.as_bytes())
            .push_chain_bytes(chain.as_bytes())
            .nested_expressions();
        Rule::new(expressions)
    }

    /// Makes it so. Blocks.
    ///
    /// # Errors
    /// When the kernel refuses any of it: then nothing has changed.
    pub fn commit(mut self) -> io::Result<()> {
        if (self.messages + 1).is_multiple_of(64) {
            // netlink-socket2 0.3.5 counts answers in words of 64 bits, and takes the last word for
            // complete when the messages fill it exactly: it would not read what was refused.
            self.make_table();
        }
        let header = batch_header();
        self.chained.request().op_batch_end_do(&header);
        let messages = self.chained.finalize();
        let mut socket = NetlinkSocket::new();
        let answer = socket.request_chained(&messages)?.recv_all();
        answer.map_err(|error| {
            let kind = error.as_io_error().kind();
            io::Error::new(kind, format!("the packet filter: {error}"))
        })
    }

    fn next(&mut self) -> Request<'_> {
        self.messages += 1;
        self.chained.request()
    }

    fn header(&self) -> Nfgenmsg {
        let mut header = Nfgenmsg::new();
        header.nfgen_family = self.family.number();
        header
    }
}

/// Writes elements into a message that adds or removes them.
fn push_elements<P: Pusher>(mut list: PushSetelemListElemAttrs<P>, elements: &Elements) {
    match elements {
        Elements::Addresses(addresses) => {
            for address in addresses {
                let key = list.nested_elem().nested_key().push_value(&address.octets());
                list = key.end_nested().end_nested();
            }
        }
        Elements::Expiring(addresses) => {
            for (address, time) in addresses {
                let key = list.nested_elem().nested_key().push_value(&address.octets());
                let mut element = key.end_nested();
                let bytes = element.as_vec_mut();
                push_header(bytes, NFTA_SET_ELEM_TIMEOUT, 8);
                let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                bytes.extend_from_slice(&milliseconds.to_be_bytes());
                list = element.end_nested();
            }
        }
        Elements::Services(services) => {
            for Services { addresses, protocols, ports } in services {
                let first = service_key(addresses.0, protocols.0, ports.0);
                let last = service_key(addresses.1, protocols.1, ports.1);
                let mut element = list.nested_elem().nested_key().push_value(&first).end_nested();
                // Its number in netlink-bindings 0.3.5 is not the kernel's either.
                let bytes = element.as_vec_mut();
                let key_end = push_nested_header(bytes, NFTA_SET_ELEM_KEY_END);
                push_header(bytes, NFTA_DATA_VALUE, KEY_BYTES);
                bytes.extend_from_slice(&last);
                finalize_nested_header(bytes, key_end);
                list = element.end_nested();
            }
        }
    }
}

/// The packets that the counting rules of a chain have seen, all together; none if there is no such
/// chain. Blocks.
pub(super) fn packets_counted(family: Family, table: &str, chain: &str) -> io::Result<u64> {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family.number();
    let mut request = Request::new().op_getrule_dump(&header);
    request.encode().push_table_bytes(table.as_bytes()).push_chain_bytes(chain.as_bytes());
    let mut socket = NetlinkSocket::new();
    let mut reply = socket.request(&request)?;
    let mut packets = 0_u64;
    while let Some(rule) = reply.recv() {
        let (_, rule) = rule.map_err(io::Error::from)?;
        let Ok(expressions) = rule.get_expressions() else { continue };
        for expression in expressions.get_elem() {
            if let Ok(ExprOps::Counter(counter)) = expression.get_data() {
                let seen = counter.get_packets().map_err(io::Error::other)?;
                packets = packets.saturating_add(seen);
            }
        }
    }
    Ok(packets)
}

fn batch_header() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(libc::NFNL_SUBSYS_NFTABLES as u16);
    header
}

const KEY_BYTES: u16 = 12;

/// Each part of a key begins at a multiple of 4 bytes.
fn service_key(address: Ipv4Addr, protocol: u8, port: u16) -> [u8; KEY_BYTES as usize] {
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    [a, b, c, d, protocol, 0, 0, 0, high, low, 0, 0]
}
