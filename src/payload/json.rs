//! JSON that refuses NaN and infinite floats, which `serde_json` writes as `null`.

use std::fmt::{self, Display};

use serde::{
    Serialize, Serializer,
    ser::{
        self, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

use crate::error::BoxError;

/// Serializes a value as JSON.
///
/// # Errors
/// If the value has a float that is NaN or infinite, or cannot be serialized.
pub(super) fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, BoxError> {
    let json = serde_json::to_vec(value)?;
    // `serde_json` writes NaN and infinite floats as `null`. Most JSON has no `null`, so it needs
    // no second pass.
    if json.windows(4).any(|text| text == b"null") {
        value.serialize(FiniteCheck)?;
    }
    Ok(json)
}

/// A serializer without output that fails at a float that is NaN or infinite.
struct FiniteCheck;

#[derive(Debug)]
enum EncodeFault {
    NotFinite,
    Custom(String),
}

impl Display for EncodeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EncodeFault::NotFinite => "JSON has no number for NaN or an infinity",
            EncodeFault::Custom(text) => text,
        })
    }
}

impl std::error::Error for EncodeFault {}

impl ser::Error for EncodeFault {
    fn custom<T: Display>(text: T) -> Self {
        EncodeFault::Custom(text.to_string())
    }
}

type Checked<T = ()> = Result<T, EncodeFault>;

/// Implements the methods for values without floats.
macro_rules! without_floats {
    ($($method:ident($($type:ty),*);)*) => {$(
        fn $method(self, $(_: $type),*) -> Checked {
            Ok(())
        }
    )*};
}

impl Serializer for FiniteCheck {
    type Ok = ();
    type Error = EncodeFault;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    without_floats! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    fn serialize_f32(self, number: f32) -> Checked {
        self.serialize_f64(number.into())
    }

    fn serialize_f64(self, number: f64) -> Checked {
        match number.is_finite() {
            true => Ok(()),
            false => Err(EncodeFault::NotFinite),
        }
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Checked {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Checked<Self> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Checked<Self> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Checked<Self> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Checked<Self> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Checked<Self> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Checked<Self> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Checked<Self> {
        Ok(self)
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Checked {
        Ok(())
    }
}

/// Implements the traits for compound values: each part is checked.
macro_rules! check_each_part {
    ($($of:ident: $($method:ident($($name:ty)?)),*;)*) => {$(
        impl $of for FiniteCheck {
            type Ok = ();
            type Error = EncodeFault;

            $(fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Checked {
                value.serialize(FiniteCheck)
            })*

            fn end(self) -> Checked {
                Ok(())
            }
        }
    )*};
}

check_each_part! {
    SerializeSeq: serialize_element();
    SerializeTuple: serialize_element();
    SerializeTupleStruct: serialize_field();
    SerializeTupleVariant: serialize_field();
    SerializeMap: serialize_key(), serialize_value();
    SerializeStruct: serialize_field(&'static str);
    SerializeStructVariant: serialize_field(&'static str);
}
