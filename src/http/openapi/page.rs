//! The document as a page for people: plain HTML, made of the document alone.
//!
//! Every text is escaped. What it names is relative to the page, so that it
//! holds below any public URL.

use std::fmt::Write as _;

use serde_json::Value;

/// The whole page.
pub fn render(document: &Value) -> String {
    let info = &document["info"];
    let title = text(&info["title"]);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}: the API</title>\n<link rel=\"stylesheet\" href=\"docs/style.css\">\n</head>\n<body>\n\
         <header>\n<h1>{title} <small>{}</small></h1>\n{}<p><a href=\"openapi.json\">openapi.json</a></p>\n</header>\n",
        text(&info["version"]),
        paragraphs(&info["description"]),
    );
    let headings = list(&document["tags"]);
    let links = headings.iter().map(|tag| (anchor(tag), text(&tag["name"])));
    let links = links.chain([("shapes".to_owned(), "Shapes".to_owned())]);
    let links = links.map(|(anchor, name)| format!("<a href=\"#{anchor}\">{name}</a>\n"));
    let _ = write!(page, "<nav aria-label=\"Parts of the API\">\n{}</nav>\n<main>\n", links.collect::<String>());
    page.push_str(&keys(&document["components"]["securitySchemes"]));
    for tag in headings {
        page.push_str(&section(document, tag));
    }
    page.push_str(&shapes(&document["components"]["schemas"]));
    page + "</main>\n</body>\n</html>\n"
}

fn keys(schemes: &Value) -> String {
    let rows = fields(schemes)
        .map(|(name, scheme)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), text(&scheme["description"])));
    format!("<section>\n<h2>Who may</h2>\n<dl>\n{}</dl>\n</section>\n", rows.collect::<String>())
}

/// The calls that stand under one heading.
fn section(document: &Value, tag: &Value) -> String {
    let calls = fields(&document["paths"])
        .flat_map(|(path, methods)| fields(methods).map(move |(method, call)| (path, method, call)))
        .filter(|(_, _, call)| list(&call["tags"]).contains(&tag["name"]));
    let calls = calls.map(|(path, method, call)| operation(document, path, method, call));
    format!(
        "<section id=\"{}\">\n<h2>{}</h2>\n<p>{}</p>\n{}</section>\n",
        anchor(tag),
        text(&tag["name"]),
        text(&tag["description"]),
        calls.collect::<String>(),
    )
}

fn operation(document: &Value, path: &str, method: &str, call: &Value) -> String {
    let mut html = format!(
        "<details id=\"{}\">\n<summary><b class=\"{method}\">{}</b> <code>{}</code> {}</summary>\n",
        text(&call["operationId"]),
        escape(&method.to_uppercase()),
        escape(path),
        text(&call["summary"]),
    );
    html.push_str(&paragraphs(&call["description"]));
    let _ = writeln!(html, "<p>{}</p>", who_may(&call["security"]));
    let parameters: String = list(&call["parameters"]).iter().map(parameter).collect();
    if !parameters.is_empty() {
        let _ = write!(html, "<h3>Takes</h3>\n<table>\n{parameters}</table>\n");
    }
    if let Some((media_type, content)) = fields(&call["requestBody"]["content"]).next() {
        let _ =
            writeln!(html, "<h3>Body</h3>\n<p><code>{}</code> {}</p>", escape(media_type), kind(&content["schema"]));
        html.push_str(&example(content));
    }
    html.push_str("<h3>Answers</h3>\n<dl>\n");
    html.extend(fields(&call["responses"]).map(|(status, answer)| answered(status, meant(document, answer))));
    html + "</dl>\n</details>\n"
}

fn who_may(security: &Value) -> String {
    let Some((scheme, scopes)) = list(security).first().and_then(|scheme| fields(scheme).next()) else {
        return "No key is needed.".to_owned();
    };
    let scopes: String = list(scopes).iter().map(|scope| format!(" <code>{}</code>", text(scope))).collect();
    format!("Needs: {}{scopes}.", escape(scheme))
}

fn parameter(parameter: &Value) -> String {
    format!(
        "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        text(&parameter["name"]),
        text(&parameter["in"]),
        kind(&parameter["schema"]),
        text(&parameter["description"]),
    )
}

/// What stands elsewhere in the document, where there is but its place.
fn meant<'d>(document: &'d Value, answer: &'d Value) -> &'d Value {
    let place = answer["$ref"].as_str().and_then(|reference| document.pointer(reference.trim_start_matches('#')));
    place.unwrap_or(answer)
}

fn answered(status: &str, answer: &Value) -> String {
    let mut html = format!("<dt>{}</dt>\n<dd><p>{}</p>\n", escape(status), text(&answer["description"]));
    for (name, header) in fields(&answer["headers"]) {
        let _ = writeln!(html, "<p><code>{}</code>: {}</p>", escape(name), text(&header["description"]));
    }
    for (media_type, content) in fields(&answer["content"]) {
        let _ = writeln!(html, "<p><code>{}</code> {}</p>", escape(media_type), kind(&content["schema"]));
        html.push_str(&example(content));
    }
    html + "</dd>\n"
}

/// The example of a body: of several the first.
fn example(content: &Value) -> String {
    let several = fields(&content["examples"]).next().map(|(_, example)| &example["value"]);
    match content.get("example").or(several) {
        None => String::new(),
        Some(Value::String(plain)) => format!("<pre>{}</pre>\n", escape(plain)),
        Some(example) => format!("<pre>{}</pre>\n", escape(&format!("{example:#}"))),
    }
}

fn shapes(schemas: &Value) -> String {
    let shapes = fields(schemas).map(|(name, schema)| {
        let rows = fields(&schema["properties"]).map(|(field, schema)| {
            let described = format!("<td>{}</td><td>{}</td>", kind(schema), text(&schema["description"]));
            format!("<tr><th scope=\"row\"><code>{}</code></th>{described}</tr>\n", escape(field))
        });
        let rows: String = rows.collect();
        let table =
            if rows.is_empty() { format!("<p>{}</p>\n", kind(schema)) } else { format!("<table>\n{rows}</table>\n") };
        let name = escape(name);
        format!(
            "<details id=\"shape-{name}\">\n<summary><code>{name}</code> {}</summary>\n{table}</details>\n",
            text(&schema["description"])
        )
    });
    format!("<section id=\"shapes\">\n<h2>Shapes</h2>\n{}</section>\n", shapes.collect::<String>())
}

/// A type in a few words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        let name = escape(name);
        return format!("<a href=\"#shape-{name}\">{name}</a>");
    }
    let several = ["oneOf", "anyOf", "allOf"].into_iter().map(|word| list(&schema[word])).find(|list| !list.is_empty());
    if let Some(several) = several {
        return several.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let words = list(&schema["enum"]);
    if !words.is_empty() {
        return words.iter().map(|word| format!("<code>{}</code>", text(word))).collect::<Vec<_>>().join(" ");
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect::<Vec<_>>().join(" or "),
        one => text(one),
    };
    let items = schema.get("items").map(|items| format!(" of {}", kind(items)));
    let format = schema["format"].as_str().map(|format| format!(" ({})", escape(format)));
    types + &items.or(format).unwrap_or_default()
}

fn anchor(tag: &Value) -> String {
    text(&tag["name"]).to_lowercase().replace(' ', "-")
}

fn fields(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn paragraphs(value: &Value) -> String {
    let plain = value.as_str().unwrap_or_default();
    plain.split("\n\n").filter(|part| !part.is_empty()).map(|part| format!("<p>{}</p>\n", marked(part))).collect()
}

fn text(value: &Value) -> String {
    marked(value.as_str().unwrap_or_default())
}

/// Escaped; what stands between two backticks is code.
fn marked(plain: &str) -> String {
    let parts = plain.split('`').enumerate();
    parts
        .map(|(place, part)| if place % 2 == 1 { format!("<code>{}</code>", escape(part)) } else { escape(part) })
        .collect()
}

fn escape(plain: &str) -> String {
    plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_text_is_escaped_and_every_call_and_shape_is_there() {
        let document = json!({
            "info": {"title": "<b>", "version": "1", "description": "a `b<c` d"},
            "tags": [{"name": "One & two", "description": "…"}],
            "paths": {"/x/{y}": {"get": {"tags": ["One & two"], "operationId": "get_x", "summary": "\"quoted\"",
                "responses": {"200": {"description": "<script>"}}}}},
            "components": {"schemas": {"thing": {"properties": {"size": {"type": ["integer", "null"]}}}}},
        });
        let page = render(&document);
        for there in
            ["&lt;b&gt;", "<code>b&lt;c</code>", "/x/{y}", "&quot;quoted&quot;", "&lt;script&gt;", "integer or null"]
        {
            assert!(page.contains(there), "{there}: {page}");
        }
        assert!(!page.contains("<script") && !page.contains("style="));
    }
}
