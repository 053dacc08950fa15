//! Hash tables and B-trees, as rkyv archives them.

use serde_json::Value;

use super::{DecodeError, Reader, Result};
use crate::model::TypeId;

/// Entries in a node of an archived B-tree.
const NODE_ENTRIES: usize = 5;

impl Reader<'_> {
    /// Reads a hash table: control bytes, one for each slot, and the slots before them, backwards.
    pub(super) fn table(
        &mut self,
        id: TypeId,
        key: TypeId,
        value: Option<TypeId>,
        at: usize,
    ) -> Result<Vec<(Value, Value)>> {
        let controls = self.pointer(id, at)?;
        let len = u32::from_le_bytes(self.array(id, at + 4)?) as usize;
        let cap = u32::from_le_bytes(self.array(id, at + 8)?) as usize;
        if len == 0 {
            return Ok(Vec::new());
        }
        let (value_offset, align) = match value {
            Some(value) => (
                self.size(key).next_multiple_of(self.align(value)),
                self.align(key).max(self.align(value)),
            ),
            None => (self.size(key), self.align(key)),
        };
        let value_size = value.map_or(0, |value| self.size(value));
        let slot = (value_offset + value_size).next_multiple_of(align);
        let slots = slot
            .checked_mul(cap)
            .ok_or_else(|| self.out_of_bounds(id, controls))?;
        let full = self.slice(id, controls, cap)?;
        let start = i64::try_from(slots)
            .ok()
            .and_then(|slots| controls.checked_sub(slots));
        self.slice(
            id,
            start.ok_or_else(|| self.out_of_bounds(id, controls))?,
            slots,
        )?;
        self.spend_values(cap)?;
        let mut entries = Vec::new();
        for index in (0..cap).filter(|index| full[*index] & 0x80 == 0) {
            let entry = controls as usize - (index + 1) * slot;
            entries.push(self.entry(key, value, entry, entry + value_offset)?);
        }
        match entries.len() == len {
            true => Ok(entries),
            false => Err(self.invalid(id, at)),
        }
    }

    fn entry(
        &mut self,
        key: TypeId,
        value: Option<TypeId>,
        key_at: usize,
        value_at: usize,
    ) -> Result<(Value, Value)> {
        let key = self.value(key, key_at)?;
        let value = value.map_or(Ok(Value::Null), |value| self.value(value, value_at))?;
        Ok((key, value))
    }

    /// Reads a B-tree in order.
    pub(super) fn tree(
        &mut self,
        id: TypeId,
        key: TypeId,
        value: Option<TypeId>,
        at: usize,
    ) -> Result<Vec<(Value, Value)>> {
        let len = u32::from_le_bytes(self.array(id, at + 4)?) as usize;
        let mut entries = Vec::new();
        if len > 0 {
            let node = Node::of(self, id, key, value);
            let root = self.pointer(id, at)?;
            self.node(&node, root, &mut entries)?;
        }
        match entries.len() == len {
            true => Ok(entries),
            false => Err(self.invalid(id, at)),
        }
    }

    fn node(&mut self, node: &Node, start: i64, out: &mut Vec<(Value, Value)>) -> Result<()> {
        self.spend_values(1)?;
        if self.left.depth == 0 {
            return Err(DecodeError::Limit {
                what: "levels",
                limit: self.limits.depth,
            });
        }
        self.left.depth -= 1;
        let inner = match self.slice(node.id, start, 1)?[0] {
            0 => false,
            1 => true,
            _ => return Err(self.invalid(node.id, start as usize)),
        };
        self.slice(
            node.id,
            start,
            if inner {
                node.inner_size
            } else {
                node.leaf_size
            },
        )?;
        let at = start as usize;
        let len = match inner {
            true => NODE_ENTRIES,
            false => u32::from_le_bytes(self.array(node.id, at + node.tail)?) as usize,
        };
        if len > NODE_ENTRIES {
            return Err(self.invalid(node.id, at));
        }
        for index in 0..len {
            if inner {
                self.child(node, at + node.tail + 4 * index, out)?;
            }
            let key_at = at + node.keys + index * self.size(node.key);
            let value_at = at + node.values + index * node.value_size;
            out.push(self.entry(node.key, node.value, key_at, value_at)?);
        }
        if inner {
            self.child(node, at + node.tail + 4 * NODE_ENTRIES, out)?;
        }
        self.left.depth += 1;
        Ok(())
    }

    /// Follows a pointer to a node, which may be none.
    fn child(&mut self, node: &Node, at: usize, out: &mut Vec<(Value, Value)>) -> Result<()> {
        let to = self.pointer(node.id, at)?;
        match to - at as i64 {
            1 => Ok(()),
            _ => self.node(node, to, out),
        }
    }
}

/// Where things lie in a node of a B-tree: kind, keys, values; then, in a leaf, how many there are,
/// and in an inner node the pointers to the nodes between and around the keys.
struct Node {
    id: TypeId,
    key: TypeId,
    value: Option<TypeId>,
    value_size: usize,
    keys: usize,
    values: usize,
    /// Where what differs between leaves and inner nodes begins.
    tail: usize,
    leaf_size: usize,
    inner_size: usize,
}

impl Node {
    fn of(reader: &Reader, id: TypeId, key: TypeId, value: Option<TypeId>) -> Self {
        let value_size = value.map_or(0, |value| reader.size(value));
        let value_align = value.map_or(1, |value| reader.align(value));
        let align = reader.align(key).max(value_align);
        let keys = 1_usize.next_multiple_of(reader.align(key));
        let values = (keys + NODE_ENTRIES * reader.size(key)).next_multiple_of(value_align);
        let head = (values + NODE_ENTRIES * value_size).next_multiple_of(align);
        let tail = head.next_multiple_of(4);
        let whole = align.max(4);
        Self {
            id,
            key,
            value,
            value_size,
            keys,
            values,
            tail,
            leaf_size: (tail + 4).next_multiple_of(whole),
            inner_size: (tail + 4 * (NODE_ENTRIES + 1)).next_multiple_of(whole),
        }
    }
}

/// Makes an object of entries whose keys can be written as text, and a list of pairs of others.
pub fn to_json(entries: Vec<(Value, Value)>) -> Value {
    let simple = |key: &Value| key.is_string() || key.is_number() || key.is_boolean();
    if !entries.iter().all(|(key, _)| simple(key)) {
        let pair = |(key, value)| Value::Array(vec![key, value]);
        return Value::Array(entries.into_iter().map(pair).collect());
    }
    let key = |key| match key {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Value::Object(
        entries
            .into_iter()
            .map(|(k, value)| (key(k), value))
            .collect(),
    )
}
