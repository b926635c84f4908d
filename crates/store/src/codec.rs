//! The bytes of a [`Request`] in the replicated log.
//!
//! ```text
//!   0         1
//!   │ version │ body │          version is 1; body starts with a tag
//!
//!   bytes     length (varint), then as many bytes
//!   number    i64, zigzag, varint                       list   count (varint), then items
//!   put       1 │ flags │ key │ value │ lease           flags  1 prev_kv  2 ignore_value  4 ignore_lease
//!   delete    2 │ flags │ key │ range_end               flags  1 prev_kv
//!   txn       3 │ list of compare │ list of op │ list of op
//!   compact   4 │ flags │ revision                      flags  1 physical
//!   range     5 │ flags │ key │ range_end │ order │ target │ six numbers
//!                                     flags  1 serializable  2 keys_only  4 count_only
//!   empty     6                                         range and empty only inside of a txn
//!   compare   result │ target │ operand │ key │ range_end
//! ```
//!
//! The encoding is canonical: a request has one encoding, unknown flag bits and trailing bytes
//! are errors. Decoding costs memory in proportion to the input, whatever the input claims,
//! and nests no deeper than [`DEPTH_MAX`].
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Bytes;

use crate::{
    error::DecodeError,
    request::{
        CompactRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, PutRequest,
        RangeRequest, Request, RequestOp, SortOrder, SortTarget, TxnRequest,
    },
};

const VERSION: u8 = 1;

/// A valid transaction nests at most 129 deep with etcd's default of 128 operations, because
/// each level has at least one operation less to spend. The rest is room for a larger limit;
/// the stack has it too.
const DEPTH_MAX: usize = 256;

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const RANGE: u8 = 5;
const EMPTY: u8 = 6;

impl Request {
    /// The bytes that are replicated.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len_hint());
        out.push(VERSION);
        match self {
            Self::Put(put) => encode_put(put, &mut out),
            Self::DeleteRange(delete) => encode_delete_range(delete, &mut out),
            Self::Txn(txn) => encode_txn(txn, &mut out),
            Self::Compact(compact) => {
                out.push(COMPACT);
                out.push(flags([compact.physical, false, false]));
                encode_number(compact.revision, &mut out);
            }
        }
        out
    }

    /// The request that `bytes` stand for. Keys and values are copied, so that none of them
    /// keeps the buffer of the log alive.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] for every input that [`encode`](Self::encode) cannot have made.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Input(bytes);
        let version = input.byte()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let request = match input.byte()? {
            PUT => Self::Put(input.put()?),
            DELETE_RANGE => Self::DeleteRange(input.delete_range()?),
            TXN => Self::Txn(input.txn(DEPTH_MAX)?),
            COMPACT => {
                let [physical, ..] = input.flags(1)?;
                Self::Compact(CompactRequest { revision: input.number()?, physical })
            }
            _ => return Err(DecodeError::Malformed("tag of a request")),
        };
        if input.0.is_empty() { Ok(request) } else { Err(DecodeError::Malformed("trailing bytes")) }
    }

    /// About the length of the encoding; exact enough that a put takes one allocation.
    fn encoded_len_hint(&self) -> usize {
        let content = match self {
            Self::Put(put) => put.key.len().saturating_add(put.value.len()),
            Self::DeleteRange(delete) => delete.key.len().saturating_add(delete.range_end.len()),
            Self::Txn(_) => 256,
            Self::Compact(_) => 0,
        };
        content.saturating_add(32)
    }
}

fn flags(bits: [bool; 3]) -> u8 {
    bits.iter().rev().fold(0, |byte, bit| (byte << 1) | u8::from(*bit))
}

fn encode_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn encode_number(value: i64, out: &mut Vec<u8>) {
    encode_varint(((value << 1) ^ (value >> 63)).cast_unsigned(), out);
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    encode_len(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn encode_len(len: usize, out: &mut Vec<u8>) {
    encode_varint(u64::try_from(len).expect("a length fits in 64 bits"), out);
}

fn encode_put(put: &PutRequest, out: &mut Vec<u8>) {
    out.push(PUT);
    out.push(flags([put.prev_kv, put.ignore_value, put.ignore_lease]));
    encode_bytes(&put.key, out);
    encode_bytes(&put.value, out);
    encode_number(put.lease, out);
}

fn encode_delete_range(delete: &DeleteRangeRequest, out: &mut Vec<u8>) {
    out.push(DELETE_RANGE);
    out.push(flags([delete.prev_kv, false, false]));
    encode_bytes(&delete.key, out);
    encode_bytes(&delete.range_end, out);
}

fn encode_txn(txn: &TxnRequest, out: &mut Vec<u8>) {
    out.push(TXN);
    encode_len(txn.compare.len(), out);
    for compare in &txn.compare {
        encode_compare(compare, out);
    }
    for branch in [&txn.success, &txn.failure] {
        encode_len(branch.len(), out);
        for op in branch {
            match op {
                RequestOp::Range(range) => encode_range(range, out),
                RequestOp::Put(put) => encode_put(put, out),
                RequestOp::DeleteRange(delete) => encode_delete_range(delete, out),
                RequestOp::Txn(txn) => encode_txn(txn, out),
                RequestOp::Empty => out.push(EMPTY),
            }
        }
    }
}

fn encode_compare(compare: &Compare, out: &mut Vec<u8>) {
    out.push(match compare.result {
        CompareResult::Equal => 0,
        CompareResult::Greater => 1,
        CompareResult::Less => 2,
        CompareResult::NotEqual => 3,
        CompareResult::Unknown => 4,
    });
    let (target, operand) = match &compare.target {
        CompareTarget::Version(operand) => (0, *operand),
        CompareTarget::Create(operand) => (1, *operand),
        CompareTarget::Mod(operand) => (2, *operand),
        CompareTarget::Value(_) => (3, 0),
        CompareTarget::Lease(operand) => (4, *operand),
        CompareTarget::Unknown => (5, 0),
    };
    out.push(target);
    match &compare.target {
        CompareTarget::Value(operand) => encode_bytes(operand, out),
        _ => encode_number(operand, out),
    }
    encode_bytes(&compare.key, out);
    encode_bytes(&compare.range_end, out);
}

fn encode_range(range: &RangeRequest, out: &mut Vec<u8>) {
    out.push(RANGE);
    out.push(flags([range.serializable, range.keys_only, range.count_only]));
    encode_bytes(&range.key, out);
    encode_bytes(&range.range_end, out);
    out.push(match range.sort_order {
        SortOrder::None => 0,
        SortOrder::Ascend => 1,
        SortOrder::Descend => 2,
        SortOrder::Unknown => 3,
    });
    out.push(match range.sort_target {
        SortTarget::Key => 0,
        SortTarget::Version => 1,
        SortTarget::Create => 2,
        SortTarget::Mod => 3,
        SortTarget::Value => 4,
        SortTarget::Unknown => 5,
    });
    encode_number(range.limit, out);
    encode_number(range.revision, out);
    encode_number(range.min_mod_revision, out);
    encode_number(range.max_mod_revision, out);
    encode_number(range.min_create_revision, out);
    encode_number(range.max_create_revision, out);
}

/// What is left to decode.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    fn flags(&mut self, known: u8) -> Result<[bool; 3], DecodeError> {
        let byte = self.byte()?;
        if byte & !known != 0 {
            return Err(DecodeError::Malformed("unknown flag"));
        }
        Ok([byte & 1 != 0, byte & 2 != 0, byte & 4 != 0])
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64_u32).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Malformed("number over 64 bits"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // A last byte of zero would be a second encoding of the same number.
                let is_canonical = byte != 0 || shift == 0;
                return if is_canonical {
                    Ok(value)
                } else {
                    Err(DecodeError::Malformed("padded number"))
                };
            }
        }
        Err(DecodeError::Malformed("number over 64 bits"))
    }

    fn number(&mut self) -> Result<i64, DecodeError> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ (value & 1).cast_signed().wrapping_neg())
    }

    fn bytes(&mut self) -> Result<Bytes, DecodeError> {
        let len = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(Bytes::copy_from_slice(bytes))
    }

    /// A list. Nothing is reserved ahead: the count is a claim, the items are the proof.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.varint()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn put(&mut self) -> Result<PutRequest, DecodeError> {
        let [prev_kv, ignore_value, ignore_lease] = self.flags(7)?;
        let (key, value, lease) = (self.bytes()?, self.bytes()?, self.number()?);
        Ok(PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease })
    }

    fn delete_range(&mut self) -> Result<DeleteRangeRequest, DecodeError> {
        let [prev_kv, ..] = self.flags(1)?;
        Ok(DeleteRangeRequest { key: self.bytes()?, range_end: self.bytes()?, prev_kv })
    }

    fn txn(&mut self, depth_left: usize) -> Result<TxnRequest, DecodeError> {
        let depth_left =
            depth_left.checked_sub(1).ok_or(DecodeError::Malformed("nested too deep"))?;
        Ok(TxnRequest {
            compare: self.list(Self::compare)?,
            success: self.list(|input| input.op(depth_left))?,
            failure: self.list(|input| input.op(depth_left))?,
        })
    }

    fn op(&mut self, depth_left: usize) -> Result<RequestOp, DecodeError> {
        Ok(match self.byte()? {
            PUT => RequestOp::Put(self.put()?),
            DELETE_RANGE => RequestOp::DeleteRange(self.delete_range()?),
            TXN => RequestOp::Txn(self.txn(depth_left)?),
            RANGE => RequestOp::Range(self.range()?),
            EMPTY => RequestOp::Empty,
            _ => return Err(DecodeError::Malformed("tag of an operation")),
        })
    }

    fn compare(&mut self) -> Result<Compare, DecodeError> {
        let result = match self.byte()? {
            0 => CompareResult::Equal,
            1 => CompareResult::Greater,
            2 => CompareResult::Less,
            3 => CompareResult::NotEqual,
            4 => CompareResult::Unknown,
            _ => return Err(DecodeError::Malformed("relation of a guard")),
        };
        let target = match self.byte()? {
            0 => CompareTarget::Version(self.number()?),
            1 => CompareTarget::Create(self.number()?),
            2 => CompareTarget::Mod(self.number()?),
            3 => CompareTarget::Value(self.bytes()?),
            4 => CompareTarget::Lease(self.number()?),
            5 if self.number()? == 0 => CompareTarget::Unknown,
            _ => return Err(DecodeError::Malformed("target of a guard")),
        };
        Ok(Compare { result, target, key: self.bytes()?, range_end: self.bytes()? })
    }

    fn range(&mut self) -> Result<RangeRequest, DecodeError> {
        let [serializable, keys_only, count_only] = self.flags(7)?;
        let (key, range_end) = (self.bytes()?, self.bytes()?);
        let sort_order = match self.byte()? {
            0 => SortOrder::None,
            1 => SortOrder::Ascend,
            2 => SortOrder::Descend,
            3 => SortOrder::Unknown,
            _ => return Err(DecodeError::Malformed("sort order")),
        };
        let sort_target = match self.byte()? {
            0 => SortTarget::Key,
            1 => SortTarget::Version,
            2 => SortTarget::Create,
            3 => SortTarget::Mod,
            4 => SortTarget::Value,
            5 => SortTarget::Unknown,
            _ => return Err(DecodeError::Malformed("sort target")),
        };
        Ok(RangeRequest {
            key,
            range_end,
            sort_order,
            sort_target,
            serializable,
            keys_only,
            count_only,
            limit: self.number()?,
            revision: self.number()?,
            min_mod_revision: self.number()?,
            max_mod_revision: self.number()?,
            min_create_revision: self.number()?,
            max_create_revision: self.number()?,
        })
    }
}
