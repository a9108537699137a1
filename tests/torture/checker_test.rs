use crate::checker::check;
