mod codec;
mod collections;
mod json;
mod space;
