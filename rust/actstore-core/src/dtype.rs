//! The element types an array can have.

use crate::error::{Error, Result};

/// An element type, named as Zarr names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    BFloat16,
    Float16,
    Float32,
    Float64,
}

impl Dtype {
    const ALL: [(Dtype, &'static str, usize); 13] = [
        (Dtype::Bool, "bool", 1),
        (Dtype::Int8, "int8", 1),
        (Dtype::Int16, "int16", 2),
        (Dtype::Int32, "int32", 4),
        (Dtype::Int64, "int64", 8),
        (Dtype::UInt8, "uint8", 1),
        (Dtype::UInt16, "uint16", 2),
        (Dtype::UInt32, "uint32", 4),
        (Dtype::UInt64, "uint64", 8),
        (Dtype::BFloat16, "bfloat16", 2),
        (Dtype::Float16, "float16", 2),
        (Dtype::Float32, "float32", 4),
        (Dtype::Float64, "float64", 8),
    ];

    /// The type Zarr calls `name`.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .find(|(_, n, _)| *n == name)
            .map(|(dtype, ..)| *dtype)
            .ok_or_else(|| Error::unsupported(format!("data type '{name}' is not one actstore reads")))
    }

    /// Zarr's name, which is NumPy's.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        Self::ALL[self as usize].2
    }

    /// Whether it converts to the other float types on reading.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::BFloat16 | Dtype::Float16 | Dtype::Float32 | Dtype::Float64)
    }
}

#[cfg(test)]
mod tests {
    use super::Dtype;

    #[test]
    fn names_parse_back() {
        for (dtype, name, size) in Dtype::ALL {
            assert_eq!(Dtype::parse(name).unwrap(), dtype);
            assert_eq!((dtype.name(), dtype.size()), (name, size));
        }
        assert!(Dtype::parse("r16").is_err());
    }
}
