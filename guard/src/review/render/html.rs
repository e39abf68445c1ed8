pub fn render(_: &super::super::report::Report) -> String {
    String::new()
}
