//! One rule: what a packet has to be like, and what becomes of it.

use std::net::Ipv4Addr;

use netlink_bindings::{
    nftables::{
        CmpOps, CtKeys, MetaKeys, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers,
        RejectTypes, VerdictCode,
    },
    traits::Pusher,
    utils::{RequestBuf, push_header},
};
use nix::libc;
use skerry_model::{Ipv4Network, PortRange};

/// Another number in netlink-bindings 0.3.5 than in the kernel; see the parent module.
const NFTA_LOOKUP_SREG: u16 = 2;

/// A register of 16 bytes, which is also four of 4 bytes.
const REGISTER: u32 = Registers::Reg1 as u32;
/// Another of 16 bytes.
const OTHER_REGISTER: u32 = Registers::Reg2 as u32;
/// The second and third of those four.
const SECOND_WORD: u32 = Registers::Reg3201 as u32;
const THIRD_WORD: u32 = Registers::Reg3202 as u32;

const NFT_NAT_DNAT: u32 = 1;

/// The two directions of a tracked connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Direction {
    /// From whoever opened it.
    Original = 0,
    /// To whoever opened it.
    Reply = 1,
}

/// The expressions of a rule message.
pub(super) type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<RequestBuf<'a>>>;

/// A rule under construction: conditions from left to right, then what becomes of the packet.
pub(in super::super) struct Rule<'a> {
    expressions: Expressions<'a>,
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum End {
    Source,
    Destination,
}

impl End {
    /// Where the address is in an IPv4 header (RFC 791).
    const fn address_offset(self) -> u32 {
        match self {
            Self::Source => 12,
            Self::Destination => 16,
        }
    }

    /// Where the port is in a TCP or UDP header.
    const fn port_offset(self) -> u32 {
        match self {
            Self::Source => 0,
            Self::Destination => 2,
        }
    }
}

impl<'a> Rule<'a> {
    pub(super) fn new(expressions: Expressions<'a>) -> Self {
        Self { expressions }
    }

    /// It came in through this interface.
    pub fn arrived_by(self, name: &str) -> Self {
        self.meta(MetaKeys::Iifname).equals(&interface(name))
    }

    /// It came in through an interface whose name begins like this.
    pub fn arrived_by_any(self, prefix: &str) -> Self {
        self.meta(MetaKeys::Iifname).equals(prefix.as_bytes())
    }

    /// It goes out through this interface.
    pub fn leaves_by(self, name: &str) -> Self {
        self.meta(MetaKeys::Oifname).equals(&interface(name))
    }

    /// It goes out through an interface whose name begins like this.
    pub fn leaves_by_any(self, prefix: &str) -> Self {
        self.meta(MetaKeys::Oifname).equals(prefix.as_bytes())
    }

    /// It is IPv6.
    pub fn ipv6(self) -> Self {
        self.meta(MetaKeys::Nfproto).equals(&[libc::NFPROTO_IPV6 as u8])
    }

    /// It is ICMP.
    pub fn icmp(self) -> Self {
        self.meta(MetaKeys::L4Proto).equals(&[libc::IPPROTO_ICMP as u8])
    }

    /// It goes this way in its connection.
    pub fn direction(self, direction: Direction) -> Self {
        self.ct(CtKeys::Direction).equals(&[direction as u8])
    }

    /// Its connection exists already.
    pub fn established(self) -> Self {
        self.ct_state(2)
    }

    /// Its connection could not be told.
    pub fn invalid(self) -> Self {
        self.ct_state(1)
    }

    /// It reports an error of a connection.
    pub fn related(self) -> Self {
        self.ct_state(4)
    }

    /// The frame is of this type (an EtherType, IEEE 802).
    pub fn ether_type(self, number: u16) -> Self {
        self.payload(PayloadBase::LinkLayerHeader, 12, 2).equals(&number.to_be_bytes())
    }

    /// The frame was sent by anybody but this station.
    pub fn not_from_station(self, mac: [u8; 6]) -> Self {
        self.payload(PayloadBase::LinkLayerHeader, 6, 6).differs_from(&mac)
    }

    /// The ARP message (RFC 826, Ethernet and IPv4) is sent by this station about itself.
    pub fn arp_sender(self, mac: [u8; 6], address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        let [m0, m1, m2, m3, m4, m5] = mac;
        let sender = [m0, m1, m2, m3, m4, m5, a, b, c, d];
        self.payload(PayloadBase::NetworkHeader, 8, 10).equals(&sender)
    }

    /// One end of the IPv4 packet is this address.
    pub fn address(self, end: End, address: Ipv4Addr) -> Self {
        self.payload(PayloadBase::NetworkHeader, end.address_offset(), 4).equals(&address.octets())
    }

    /// One end of the IPv4 packet is in a range whose length is a multiple of 8 bits.
    pub fn address_begins(self, end: End, octets: &[u8]) -> Self {
        let length = octets.len() as u32;
        self.payload(PayloadBase::NetworkHeader, end.address_offset(), length).equals(octets)
    }

    /// One end of the IPv4 packet is in this network.
    pub fn address_within(self, end: End, network: Ipv4Network) -> Self {
        let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix_bits())).unwrap_or(0);
        self.payload(PayloadBase::NetworkHeader, end.address_offset(), 4)
            .masked(&mask.to_be_bytes())
            .equals(&network.first().octets())
    }

    /// It is of this protocol (IANA's number).
    pub fn protocol(self, number: u8) -> Self {
        self.meta(MetaKeys::L4Proto).equals(&[number])
    }

    /// One of its ports is this one.
    pub fn port(self, end: End, port: u16) -> Self {
        self.payload(PayloadBase::TransportHeader, end.port_offset(), 2).equals(&port.to_be_bytes())
    }

    /// One of its ports is one of these.
    pub fn port_within(self, end: End, ports: PortRange) -> Self {
        self.payload(PayloadBase::TransportHeader, end.port_offset(), 2)
            .compare(CmpOps::Gte, &ports.first().to_be_bytes())
            .compare(CmpOps::Lte, &ports.last().to_be_bytes())
    }

    /// An earlier rule marked it.
    pub fn marked(self, mark: u32) -> Self {
        self.meta(MetaKeys::Mark).equals(&mark.to_ne_bytes())
    }

    /// Marks it for a later rule. Marks do not leave the namespace.
    pub fn mark(mut self, mark: u32) {
        self = self.load(REGISTER, &mark.to_ne_bytes());
        let meta = self.expressions.nested_elem().nested_data_meta();
        meta.push_key(MetaKeys::Mark as u32).push_sreg(REGISTER);
    }

    /// One end of the IPv4 packet is in a set of addresses.
    pub fn address_in(self, end: End, set: &str) -> Self {
        self.payload(PayloadBase::NetworkHeader, end.address_offset(), 4).found_in(set)
    }

    /// An address, the protocol and a port of the packet are in a set of services.
    pub fn service_in(self, address: End, port: End, set: &str) -> Self {
        self.payload(PayloadBase::NetworkHeader, address.address_offset(), 4)
            .meta_into(MetaKeys::L4Proto, SECOND_WORD)
            .payload_into(PayloadBase::TransportHeader, port.port_offset(), 2, THIRD_WORD)
            .found_in(set)
    }

    /// How often it came so far is counted.
    pub fn counted(mut self) -> Self {
        let counter = self.expressions.nested_elem().nested_data_counter();
        self.expressions = counter.push_bytes(0).push_packets(0).end_nested().end_nested();
        self
    }

    /// The packet goes on.
    pub fn accept(self) {
        self.verdict(VerdictCode::Accept, None);
    }

    /// This chain does not decide: the one that it was asked by goes on.
    pub fn back(self) {
        self.verdict(VerdictCode::Return, None);
    }

    /// The packet is gone.
    pub fn drop(self) {
        self.verdict(VerdictCode::Drop, None);
    }

    /// Another chain decides, and this one if it does not.
    pub fn jump(self, chain: &str) {
        self.verdict(VerdictCode::Jump, Some(chain));
    }

    /// The packet is gone, and its sender is told that it is forbidden (RFC 1812, 5.2.7.1).
    pub fn reject(self) {
        self.expressions
            .nested_elem()
            .nested_data_reject()
            .push_type(RejectTypes::IcmpUnreach as u32)
            .push_icmp_code(ADMINISTRATIVELY_PROHIBITED);
    }

    /// The connection is to this address.
    pub fn redirect_to(self, address: Ipv4Addr) {
        let loaded = self.load(REGISTER, &address.octets());
        loaded
            .expressions
            .nested_elem()
            .nested_data_nat()
            .push_type(NFT_NAT_DNAT)
            .push_family(libc::NFPROTO_IPV4 as u32)
            .push_reg_addr_min(REGISTER);
    }

    /// The connection is to this address and port.
    pub fn redirect_to_port(self, address: Ipv4Addr, port: u16) {
        let loaded =
            self.load(REGISTER, &address.octets()).load(OTHER_REGISTER, &port.to_be_bytes());
        loaded
            .expressions
            .nested_elem()
            .nested_data_nat()
            .push_type(NFT_NAT_DNAT)
            .push_family(libc::NFPROTO_IPV4 as u32)
            .push_reg_addr_min(REGISTER)
            .push_reg_proto_min(OTHER_REGISTER);
    }

    fn load(mut self, register: u32, value: &[u8]) -> Self {
        let immediate = self.expressions.nested_elem().nested_data_immediate().push_dreg(register);
        let loaded = immediate.nested_data().push_value(value);
        self.expressions = loaded.end_nested().end_nested().end_nested();
        self
    }

    /// The connection comes from the address of the interface that it leaves by.
    pub fn masquerade(self) {
        self.expressions.nested_elem().push_name(c"masq");
    }

    fn meta(self, key: MetaKeys) -> Self {
        self.meta_into(key, REGISTER)
    }

    fn meta_into(mut self, key: MetaKeys, register: u32) -> Self {
        let meta = self.expressions.nested_elem().nested_data_meta();
        self.expressions = meta.push_dreg(register).push_key(key as u32).end_nested().end_nested();
        self
    }

    fn ct(mut self, key: CtKeys) -> Self {
        let ct = self.expressions.nested_elem().nested_data_ct();
        self.expressions = ct.push_dreg(REGISTER).push_key(key as u32).end_nested().end_nested();
        self
    }

    /// `bit` as in `NF_CT_STATE_BIT`: host byte order.
    fn ct_state(self, bit: u32) -> Self {
        self.ct(CtKeys::State).masked(&bit.to_ne_bytes()).differs_from(&[0; 4])
    }

    /// Leaves of what was loaded the bits of `mask`.
    fn masked(mut self, mask: &[u8; 4]) -> Self {
        self.expressions = self
            .expressions
            .nested_elem()
            .nested_data_bitwise()
            .push_sreg(REGISTER)
            .push_dreg(REGISTER)
            .push_len(4)
            .nested_mask()
            .push_value(mask)
            .end_nested()
            .nested_xor()
            .push_value(&[0; 4])
            .end_nested()
            .end_nested()
            .end_nested();
        self
    }

    fn payload(self, base: PayloadBase, offset: u32, length: u32) -> Self {
        self.payload_into(base, offset, length, REGISTER)
    }

    fn payload_into(mut self, base: PayloadBase, offset: u32, length: u32, register: u32) -> Self {
        let payload = self.expressions.nested_elem().nested_data_payload();
        self.expressions = payload
            .push_dreg(register)
            .push_base(base as u32)
            .push_offset(offset)
            .push_len(length)
            .end_nested()
            .end_nested();
        self
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(CmpOps::Eq, value)
    }

    fn differs_from(self, value: &[u8]) -> Self {
        self.compare(CmpOps::Neq, value)
    }

    fn compare(mut self, how: CmpOps, value: &[u8]) -> Self {
        let cmp = self.expressions.nested_elem().nested_data_cmp();
        self.expressions = cmp
            .push_sreg(REGISTER)
            .push_op(how as u32)
            .nested_data()
            .push_value(value)
            .end_nested()
            .end_nested()
            .end_nested();
        self
    }

    fn found_in(mut self, set: &str) -> Self {
        let lookup = self.expressions.nested_elem().nested_data_lookup();
        let mut lookup = lookup.push_set_bytes(set.as_bytes());
        push_header(lookup.as_vec_mut(), NFTA_LOOKUP_SREG, 4);
        lookup.as_vec_mut().extend_from_slice(&REGISTER.to_be_bytes());
        self.expressions = lookup.end_nested().end_nested();
        self
    }

    fn verdict(self, code: VerdictCode, chain: Option<&str>) {
        let mut verdict = self
            .expressions
            .nested_elem()
            .nested_data_immediate()
            .push_dreg(Registers::RegVerdict as u32)
            .nested_data()
            .nested_verdict()
            .push_code(code as u32);
        if let Some(chain) = chain {
            verdict = verdict.push_chain_bytes(chain.as_bytes());
        }
        verdict.end_nested();
    }
}

/// RFC 1812: communication administratively prohibited.
const ADMINISTRATIVELY_PROHIBITED: u8 = 13;

/// A name as the kernel compares it: as long as it can be.
fn interface(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}
