//! The derive, the codec and the schema together, over the public face.

mod shapes;
