//! Numbers that take as many bytes as they need: seven bits each, the lowest first.
#![cfg_attr(not(test), warn(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use kontiki_disk::ByteReader;

/// Appends a number.
pub(crate) fn put(out: &mut Vec<u8>, mut number: u64) {
    if let (Ok(byte), true) = (u8::try_from(number), number < 0x80) {
        out.push(byte); // most of them
        return;
    }
    let mut bytes = [0; 10];
    let mut len = 0_usize;
    for byte in &mut bytes {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        len = len.saturating_add(1);
        if number == 0 {
            *byte = low & 0x7F;
            break;
        }
        *byte = low | 0x80;
    }
    let (used, _) = bytes.split_at(len);
    out.extend_from_slice(used);
}

/// Takes a number. `None` if there is none that is whole.
pub(crate) fn take(reader: &mut ByteReader<'_>) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = reader.u8()?;
        let bits = u64::from(byte & 0x7F);
        if shift == 63 && 1 < bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Takes a number that fits into less.
pub(crate) fn take_as<T: TryFrom<u64>>(reader: &mut ByteReader<'_>) -> Option<T> {
    T::try_from(take(reader)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_and_what_is_none_is_refused() {
        for number in [0, 1, 127, 128, 300, 1 << 35, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            assert_eq!(take(&mut ByteReader::new(&bytes)), Some(number));
            bytes.pop();
            assert_eq!(take(&mut ByteReader::new(&bytes)), None, "{number} cut short");
        }
        assert_eq!(take(&mut ByteReader::new(&[0xFF; 10])), None, "more than 64 bits");
        assert_eq!(take_as::<u32>(&mut ByteReader::new(&[0xFF; 9])), None);
    }
}
