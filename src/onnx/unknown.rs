//! Fields that the schema does not know: found when reading, put back when writing.
//!
//! prost drops such fields in silence, so the bytes of a file are walked once beside prost's decoding. The walk steps
//! over strings and tensor data by their length and costs a fraction of a millisecond for most models. It also says
//! where a damaged file breaks off, which prost does not.
//!
//! What is found is a tree, [`Unknown`], that follows the messages: import takes the branch of each entity along with
//! the entity, export puts the tree together again, and [`splice`] writes it into the encoded model. The fields of a
//! message come back at its end, which is where protobuf itself puts fields that it does not know.

use std::collections::BTreeMap;

use crate::error::{Result, anyhow, bail, ensure};

/// A message type: its name and its fields, sorted by number.
#[derive(Debug)]
pub(crate) struct KnownMessage {
    /// Full name, for messages.
    pub(crate) name: &'static str,
    /// Field number, and the index in [`KNOWN`] of the message it holds, if it holds one.
    pub(crate) fields: &'static [(u32, Option<usize>)],
}

include!(concat!(env!("OUT_DIR"), "/known_fields.rs"));

/// How deep messages may lie in each other: prost's limit.
const MAX_DEPTH: usize = 100;

/// The unknown fields of a message and of the messages in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// The message's own unknown fields, keys included, in file order.
    own: Vec<u8>,
    /// Those of messages in it, by field number and position among the occurrences of that field.
    inner: BTreeMap<(u32, usize), Unknown>,
}

impl Unknown {
    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.inner.is_empty()
    }

    /// Takes out the branch of the `nth` message in `field`.
    pub(crate) fn take(&mut self, field: u32, nth: usize) -> Unknown {
        self.inner.remove(&(field, nth)).unwrap_or_default()
    }

    /// Adds the branch of the `nth` message in `field`.
    pub(crate) fn put(&mut self, field: u32, nth: usize, branch: Unknown) {
        if !branch.is_empty() {
            self.inner.insert((field, nth), branch);
        }
    }

    /// The numbers of the unknown fields, each with the name of the message that it was found in, sorted.
    pub(crate) fn numbers(&self, message: usize) -> Vec<(&'static str, u32)> {
        let mut found = Vec::new();
        self.collect(message, &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }

    fn collect(&self, message: usize, found: &mut Vec<(&'static str, u32)>) {
        let Some(known) = KNOWN.get(message) else { return };
        let mut wire = Wire { bytes: &self.own, at: 0, start: 0, message: known.name };
        while let Ok(Some(field)) = wire.next() {
            found.push((known.name, field.number));
        }
        for (&(number, _), branch) in &self.inner {
            if let Some(Some(inner)) = known.field(number) {
                branch.collect(inner, found);
            }
        }
    }
}

impl KnownMessage {
    /// The message that a field holds, if the field is known and holds one.
    fn field(&self, number: u32) -> Option<Option<usize>> {
        let i = self.fields.binary_search_by_key(&number, |&(n, _)| n).ok()?;
        self.fields.get(i).map(|&(_, held)| held)
    }
}

/// A field on the wire.
struct Field<'a> {
    number: u32,
    /// Key and value.
    whole: &'a [u8],
    /// The content of a length-delimited field, and where in the file it starts.
    content: Option<(&'a [u8], usize)>,
}

/// Steps over the fields of a message.
struct Wire<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where in the file the message starts.
    start: usize,
    message: &'static str,
}

impl<'a> Wire<'a> {
    fn next(&mut self) -> Result<Option<Field<'a>>> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let begin = self.at;
        let (number, wire_type) = self.key()?;
        let content = self.value(number, wire_type, 0)?;
        let whole = self.bytes.get(begin..self.at).unwrap_or_default();
        Ok(Some(Field { number, whole, content }))
    }

    fn key(&mut self) -> Result<(u32, u8)> {
        let at = self.at;
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|&n| n > 0 && key <= u64::from(u32::MAX));
        let wire_type = u8::try_from(key & 7).unwrap_or_default();
        match number {
            Some(number) => Ok((number, wire_type)),
            None => bail!("invalid field key at byte {} ({})", self.start + at, self.message),
        }
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let &byte = self.bytes.get(self.at).ok_or_else(|| self.truncated(1))?;
            self.at += 1;
            ensure!(i < 9 || byte < 2, "invalid number at byte {} ({})", self.start + self.at - 1, self.message);
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("invalid number at byte {} ({})", self.start + self.at, self.message)
    }

    fn skip(&mut self, n: u64) -> Result<(&'a [u8], usize)> {
        let at = self.at;
        let end = usize::try_from(n).ok().and_then(|n| at.checked_add(n));
        match end.and_then(|end| Some((end, self.bytes.get(at..end)?))) {
            Some((end, content)) => {
                self.at = end;
                Ok((content, self.start + at))
            }
            None => Err(self.truncated(n)),
        }
    }

    /// Steps over a value; the content when it is length-delimited.
    fn value(&mut self, number: u32, wire_type: u8, depth: usize) -> Result<Option<(&'a [u8], usize)>> {
        match wire_type {
            0 => self.varint().map(|_| None),
            1 => self.skip(8).map(|_| None),
            2 => {
                let n = self.varint()?;
                self.skip(n).map(Some)
            }
            // A group, which proto2 deprecates and ONNX never had: it ends at its own end key.
            3 => loop {
                ensure!(depth < MAX_DEPTH, "groups nested too deep at byte {}", self.start + self.at);
                let (inner, wire_type) = self.key()?;
                if wire_type != 4 {
                    self.value(inner, wire_type, depth + 1)?;
                } else if inner == number {
                    return Ok(None);
                } else {
                    bail!("unmatched end of group at byte {} ({})", self.start + self.at, self.message);
                }
            },
            5 => self.skip(4).map(|_| None),
            _ => bail!("invalid wire type {wire_type} at byte {} ({})", self.start + self.at, self.message),
        }
    }

    fn truncated(&self, needed: u64) -> anyhow::Error {
        let (at, left) = (self.start + self.at, self.bytes.len().saturating_sub(self.at));
        anyhow!("truncated at byte {at}: a field of {} takes {needed} more bytes, {left} are left", self.message)
    }
}

/// The unknown fields of `bytes`, an encoded message of the type with index `message` in [`KNOWN`].
///
/// # Errors
/// The bytes are not a protobuf message; the error says at which byte.
pub(crate) fn scan(bytes: &[u8], message: usize) -> Result<Unknown> {
    scan_at(bytes, 0, message, 0)
}

fn scan_at(bytes: &[u8], start: usize, message: usize, depth: usize) -> Result<Unknown> {
    let known = KNOWN.get(message).ok_or_else(|| anyhow!("no such message"))?;
    ensure!(depth <= MAX_DEPTH, "messages nested more than {MAX_DEPTH} deep at byte {start} ({})", known.name);
    let mut unknown = Unknown::default();
    let mut seen: Vec<(u32, usize)> = Vec::new();
    let mut wire = Wire { bytes, at: 0, start, message: known.name };
    while let Some(field) = wire.next()? {
        match (known.field(field.number), field.content) {
            (None, _) => unknown.own.extend_from_slice(field.whole),
            (Some(Some(inner)), Some((content, at))) => {
                let nth = occurrence(&mut seen, field.number);
                unknown.put(field.number, nth, scan_at(content, at, inner, depth + 1)?);
            }
            _ => {}
        }
    }
    Ok(unknown)
}

/// How many fields with this number came before.
fn occurrence(seen: &mut Vec<(u32, usize)>, number: u32) -> usize {
    match seen.iter_mut().find(|(n, _)| *n == number) {
        Some((_, count)) => {
            *count += 1;
            *count
        }
        None => {
            seen.push((number, 0));
            0
        }
    }
}

/// `bytes`, an encoded message of the type with index `message` in [`KNOWN`], with `unknown` put into it.
///
/// # Errors
/// The bytes are not such a message.
pub(crate) fn splice(bytes: &[u8], message: usize, unknown: &Unknown) -> Result<Vec<u8>> {
    let known = KNOWN.get(message).ok_or_else(|| anyhow!("no such message"))?;
    let mut out = Vec::with_capacity(bytes.len() + unknown.own.len());
    let mut seen = Vec::new();
    let mut wire = Wire { bytes, at: 0, start: 0, message: known.name };
    while let Some(field) = wire.next()? {
        let branch = match (known.field(field.number), field.content) {
            (Some(Some(inner)), Some((content, _))) => {
                let nth = occurrence(&mut seen, field.number);
                unknown.inner.get(&(field.number, nth)).map(|branch| (branch, inner, content))
            }
            _ => None,
        };
        match branch {
            Some((branch, inner, content)) => {
                let content = splice(content, inner, branch)?;
                prost::encoding::encode_key(field.number, prost::encoding::WireType::LengthDelimited, &mut out);
                prost::encoding::encode_varint(u64::try_from(content.len())?, &mut out);
                out.extend_from_slice(&content);
            }
            None => out.extend_from_slice(field.whole),
        }
    }
    out.extend_from_slice(&unknown.own);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::proto::{GraphProto, ModelProto, NodeProto};
    use super::*;

    /// A model with an unknown field in the model, the graph and the second node.
    fn model() -> Vec<u8> {
        let field = |key: &[u8], content: &[u8]| [key, &[u8::try_from(content.len()).unwrap()], content].concat();
        let node = |name: &str| NodeProto { op_type: Some(name.into()), ..Default::default() }.encode_to_vec();
        let strange = field(&[0xfa, 0x7f], b"from the future");
        let graph = [field(&[0x0a], &node("Relu")), field(&[0x0a], &[node("Neg"), strange].concat())].concat();
        let graph = [graph, vec![0x80, 0x7d, 7]].concat();
        [vec![8, 8], field(&[0x3a], &graph), vec![0xf9, 0x7f, 1, 2, 3, 4, 5, 6, 7, 8]].concat()
    }

    #[test]
    fn unknown_fields_are_found_and_put_back() {
        let bytes = model();
        let mut unknown = scan(&bytes, MODEL).unwrap();
        let known = ModelProto::decode(bytes.as_slice()).unwrap();
        assert!(known.encoded_len() < bytes.len(), "prost drops what it does not know");
        assert_eq!(splice(&known.encode_to_vec(), MODEL, &unknown).unwrap(), bytes);
        let names: Vec<_> = unknown.numbers(MODEL);
        assert_eq!(names, [("onnx.GraphProto", 2000), ("onnx.ModelProto", 2047), ("onnx.NodeProto", 2047)]);

        let mut graph = unknown.take(7, 0);
        let node = graph.take(1, 1);
        assert!(graph.take(1, 0).is_empty());
        graph.put(1, 0, node);
        let swapped = GraphProto { node: known.graph.unwrap().node.into_iter().rev().collect(), ..Default::default() };
        let swapped = splice(&swapped.encode_to_vec(), graph_index(), &graph).unwrap();
        assert_eq!(scan(&swapped, graph_index()).unwrap(), graph);
    }

    fn graph_index() -> usize {
        KNOWN.iter().position(|m| m.name == "onnx.GraphProto").unwrap()
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let bytes = model();
        let of = |bytes: &[u8]| format!("{:#}", scan(bytes, MODEL).unwrap_err());
        assert_eq!(
            of(&bytes[..20]),
            "truncated at byte 4: a field of onnx.ModelProto takes 36 more bytes, 16 are left"
        );
        assert_eq!(of(&[8]), "truncated at byte 1: a field of onnx.ModelProto takes 1 more bytes, 0 are left");
        assert_eq!(of(&[0x0f]), "invalid wire type 7 at byte 1 (onnx.ModelProto)");
        assert_eq!(of(&[0]), "invalid field key at byte 0 (onnx.ModelProto)");
        assert_eq!(
            of(&[0x3a, 2, 0x0a, 5]),
            "truncated at byte 4: a field of onnx.GraphProto takes 5 more bytes, 0 are left"
        );
        assert_eq!(
            of(&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            "invalid number at byte 10 (onnx.ModelProto)"
        );
    }

    #[test]
    fn depth_is_bounded() {
        let mut bytes = Vec::new();
        for _ in 0..2000 {
            let mut outer = Vec::new();
            // ModelProto.graph, then GraphProto.node, NodeProto.attribute, AttributeProto.g over and over.
            prost::encoding::encode_key(5, prost::encoding::WireType::LengthDelimited, &mut outer);
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.append(&mut bytes);
            bytes = outer;
        }
        let optional = scan(&bytes, SEQUENCE).unwrap_err();
        assert!(format!("{optional:#}").contains("nested more than 100 deep"), "{optional:#}");
        let groups = vec![0xfb; 5000];
        assert!(scan(&groups, MODEL).is_err());
        let groups: Vec<u8> = [0xfb, 0x7f].into_iter().cycle().take(100_000).collect();
        assert!(scan(&groups, MODEL).is_err());
    }
}
