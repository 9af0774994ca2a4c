//! Renders rustdoc's JSON as readable lines: one for each item, as it would be declared.

use std::collections::BTreeSet;

use serde_json::Value;

/// Traits that a derive implements only for the compiler.
const COMPILERS: [&str; 2] = ["StructuralPartialEq", "TrivialClone"];

/// Rustdoc's description of a crate.
pub(crate) struct Crate(pub(crate) Value);

/// An exported item, by the name under which it is exported.
pub(crate) struct Exported<'a> {
    pub(crate) name: &'a str,
    pub(crate) item: &'a Value,
}

impl Crate {
    pub(crate) fn format(&self) -> String {
        self.0["format_version"].to_string()
    }

    pub(crate) fn item(&self, id: &Value) -> &Value {
        &self.0["index"][id.to_string()]
    }

    /// Returns the items that the root exports, except hidden ones.
    pub(crate) fn exported(&self) -> Vec<Exported<'_>> {
        let mut found = Vec::new();
        for item in self.all(&self.item(&self.0["root"])["inner"]["module"]["items"]) {
            let used = &item["inner"]["use"];
            if hidden(item)
                || item["visibility"] != "public"
                || (item["name"] == "guide" && !used.is_object())
            {
                continue; // The guide is only text.
            }
            let (name, item) = match used["id"].is_null() {
                true => (&item["name"], item),
                false => (&used["name"], self.item(&used["id"])),
            };
            found.push(Exported { name: name.as_str().expect("a name"), item });
        }
        found.sort_by_key(|it| it.name);
        found
    }

    /// Returns the public functions that a type has itself.
    pub(crate) fn functions<'a>(&'a self, item: &'a Value) -> Vec<&'a Value> {
        let (_, inner) = kind(item);
        let impls = self.all(&inner["impls"]).filter(|it| it["inner"]["impl"]["trait"].is_null());
        let items = impls.flat_map(|it| self.all(&it["inner"]["impl"]["items"]));
        let mut found: Vec<_> = items
            .filter(|it| it["visibility"] == "public" && !hidden(it) && kind(it).0 == "function")
            .collect();
        found.sort_by_key(|it| text(&it["name"]));
        found
    }

    /// Returns all lines.
    pub(crate) fn interface(&self) -> Vec<String> {
        let exported = self.exported();
        let mut lines = Vec::new();
        for Exported { name, item } in &exported {
            self.declare(name, item, &mut lines);
            self.traits(item, &mut lines);
            let functions = self.functions(item);
            lines.extend(functions.iter().map(|it| format!("  {}", self.function(name, it))));
            lines.push(String::new());
        }
        lines.extend(self.foreign(&exported));
        lines
    }

    fn all<'a>(&'a self, ids: &'a Value) -> impl Iterator<Item = &'a Value> {
        ids.as_array().into_iter().flatten().map(|id| self.item(id)).filter(|item| item.is_object())
    }

    fn declare(&self, name: &str, item: &Value, lines: &mut Vec<String>) {
        let (what, inner) = kind(item);
        if what == "function" {
            return lines.push(self.function("narrows", item));
        }
        let generics = self.generics(&inner["generics"]);
        lines.push(format!("{}{what} {name}{generics}", attributes(item)));
        let fields = match what {
            "struct" => self.fields(&inner["kind"]),
            "enum" => self.all(&inner["variants"]).map(|it| (it, self.variant(it))).collect(),
            _ => panic!("{what} {name}: add it to tests/repository/public_api/render.rs"),
        };
        lines.extend(fields.iter().filter(|(it, _)| !hidden(it)).map(|(_, line)| format!("  {line}")));
    }

    /// Returns the public fields of a struct.
    fn fields<'a>(&'a self, shape: &'a Value) -> Vec<(&'a Value, String)> {
        let named = self.all(&shape["plain"]["fields"]);
        let unnamed = self.all(&shape["tuple"]);
        let public = named.chain(unnamed).filter(|it| it["visibility"] == "public");
        public.map(|it| (it, format!("field {}", self.field(it)))).collect()
    }

    fn field(&self, it: &Value) -> String {
        format!("{}: {}", text(&it["name"]), ty(&it["inner"]["struct_field"]))
    }

    fn variant(&self, item: &Value) -> String {
        let shape = &item["inner"]["variant"]["kind"];
        let each = |ids: &Value, named: bool| {
            let fields = self.all(ids).map(|it| match named {
                true => self.field(it),
                false => ty(&it["inner"]["struct_field"]),
            });
            fields.collect::<Vec<_>>().join(", ")
        };
        let name = text(&item["name"]);
        let fields = if shape["tuple"].is_array() {
            format!("({})", each(&shape["tuple"], false))
        } else if shape["struct"].is_object() {
            format!(" {{ {} }}", each(&shape["struct"]["fields"], true))
        } else {
            String::new()
        };
        format!("{}variant {name}{fields}", attributes(item))
    }

    /// Adds the traits that a type implements: those of the source, and of those that the compiler adds only the auto traits.
    fn traits(&self, item: &Value, lines: &mut Vec<String>) {
        let (_, inner) = kind(item);
        let mut found = BTreeSet::new();
        for it in self.all(&inner["impls"]).map(|it| &it["inner"]["impl"]) {
            let of = path(&it["trait"]);
            let shared = it["is_synthetic"] == true && ["Send", "Sync"].contains(&of.as_str());
            if !own(it, item) || !(by_hand(it) || shared) || COMPILERS.contains(&of.as_str()) {
                continue;
            }
            let types = self.all(&it["items"]).filter(|it| kind(it).0 == "assoc_type");
            let types: Vec<_> = types
                .map(|it| format!("{} = {}", text(&it["name"]), ty(&it["inner"]["assoc_type"]["type"])))
                .collect();
            let not = if it["is_negative"] == true { "!" } else { "" };
            let types = if types.is_empty() { String::new() } else { format!("<{}>", types.join(", ")) };
            found.insert(format!("{not}{of}{types}"));
        }
        let names: Vec<_> = found.into_iter().collect();
        lines.push(format!("  impl {}", names.join(", ")));
    }

    /// Returns the implementations of foreign types for exported ones, such as `From` for a system error.
    fn foreign(&self, exported: &[Exported<'_>]) -> BTreeSet<String> {
        let each = |it: &Exported<'_>| {
            let impls = self.all(&kind(it.item).1["impls"]).map(|it| &it["inner"]["impl"]);
            let foreign =
                impls.filter(|impl_| !own(impl_, it.item) && by_hand(impl_) && self.seen(exported, impl_));
            foreign
                .map(|it| format!("impl {} for {}", path(&it["trait"]), ty(&it["for"])))
                .collect::<Vec<_>>()
        };
        exported.iter().flat_map(each).collect()
    }

    /// Returns whether an implementation is not for a hidden type of this crate.
    fn seen(&self, exported: &[Exported<'_>], it: &Value) -> bool {
        let id = &it["for"]["resolved_path"]["id"];
        exported.iter().any(|it| it.item["id"] == *id) || !self.item(id).is_object()
    }

    fn function(&self, owner: &str, item: &Value) -> String {
        let it = &item["inner"]["function"];
        let inputs = it["sig"]["inputs"].as_array().expect("inputs").iter().map(|input| {
            let (name, of) = (text(&input[0]), ty(&input[1]));
            match (name, of.as_str()) {
                ("self", "Self") => "self".to_owned(),
                ("self", "&Self") => "&self".to_owned(),
                ("self", "&mut Self") => "&mut self".to_owned(),
                _ => format!("{name}: {of}"),
            }
        });
        let inputs = inputs.collect::<Vec<_>>().join(", ");
        let output = &it["sig"]["output"];
        let output = if output.is_null() { String::new() } else { format!(" -> {}", ty(output)) };
        let words = ["const", "unsafe"].map(|word| match it["header"][format!("is_{word}")] == true {
            true => format!("{word} "),
            false => String::new(),
        });
        let (name, generics) = (text(&item["name"]), self.generics(&it["generics"]));
        let bounds = predicates(&it["generics"]["where_predicates"]);
        let (attributes, words) = (attributes(item), words.concat());
        format!("{attributes}{words}fn {owner}::{name}{generics}({inputs}){output}{bounds}")
    }

    fn generics(&self, generics: &Value) -> String {
        let params = generics["params"].as_array().into_iter().flatten();
        let params = params.filter(|it| it["kind"]["type"]["is_synthetic"] != true).map(|it| {
            let bounds = bounds(&it["kind"]["type"]["bounds"]);
            let colon = if bounds.is_empty() { "" } else { ": " };
            format!("{}{colon}{bounds}", text(&it["name"]))
        });
        let params: Vec<_> = params.collect();
        if params.is_empty() { String::new() } else { format!("<{}>", params.join(", ")) }
    }
}

/// Returns the kind of an item, and rustdoc's description of it.
pub(crate) fn kind(item: &Value) -> (&str, &Value) {
    let inner = item["inner"].as_object().and_then(|it| it.iter().next());
    inner.map_or(("nothing", &Value::Null), |(what, inner)| (what.as_str(), inner))
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(crate) fn hidden(item: &Value) -> bool {
    item["attrs"].as_array().into_iter().flatten().any(|it| it["other"] == "#[doc(hidden)]")
}

/// Returns whether an implementation is of the type itself, and not of another type that refers to it.
fn own(it: &Value, item: &Value) -> bool {
    it["for"]["resolved_path"]["id"] == item["id"]
}

/// Returns whether an implementation is in the source, and not added by the compiler.
fn by_hand(it: &Value) -> bool {
    it["trait"].is_object() && it["blanket_impl"].is_null() && it["is_synthetic"] == false
}

/// Returns the attributes that a user notices.
fn attributes(item: &Value) -> String {
    let attributes = item["attrs"].as_array().into_iter().flatten();
    let argument = attributes.map(|it| match it {
        it if it == "non_exhaustive" => "#[non_exhaustive] ",
        it if it["must_use"].is_object() => "#[must_use] ",
        _ => "",
    });
    argument.collect()
}

fn list(values: &Value, each: impl Fn(&Value) -> String) -> String {
    let each: Vec<_> = values.as_array().into_iter().flatten().map(each).collect();
    each.join(", ")
}

/// Renders a path. A type of this crate has only its last name, since only the root exports. Other paths are as in the source.
fn path(it: &Value) -> String {
    let written = text(&it["path"]);
    let name = match written.starts_with("crate::") || written.starts_with("super::") {
        true => written.rsplit("::").next().unwrap_or_default(),
        false => written,
    };
    let angle = &it["args"]["angle_bracketed"];
    let mut args: Vec<_> = angle["args"].as_array().into_iter().flatten().map(argument).collect();
    let bound = |it: &Value| match &it["binding"]["equality"]["type"] {
        is if is.is_object() => format!("{} = {}", text(&it["name"]), ty(is)),
        _ => format!("{}: {}", text(&it["name"]), bounds(&it["binding"]["constraint"])),
    };
    args.extend(angle["constraints"].as_array().into_iter().flatten().map(bound));
    let called = &it["args"]["parenthesized"];
    if called.is_object() {
        let output = &called["output"];
        let output = if output.is_null() { String::new() } else { format!(" -> {}", ty(output)) };
        return format!("{name}({}){output}", list(&called["inputs"], ty));
    }
    if args.is_empty() { name.to_owned() } else { format!("{name}<{}>", args.join(", ")) }
}

fn argument(it: &Value) -> String {
    match it {
        it if it["type"].is_object() => ty(&it["type"]),
        it if it["lifetime"].is_string() => text(&it["lifetime"]).to_owned(),
        it if it["const"].is_object() => text(&it["const"]["expr"]).to_owned(),
        _ => "_".to_owned(),
    }
}

fn bounds(them: &Value) -> String {
    let each = them.as_array().into_iter().flatten().map(|it| {
        if it["outlives"].is_string() {
            return text(&it["outlives"]).to_owned();
        }
        let bound = &it["trait_bound"];
        let maybe = if bound["modifier"] == "maybe" { "?" } else { "" };
        format!("{maybe}{}{}", higher(&bound["generic_params"]), path(&bound["trait"]))
    });
    each.collect::<Vec<_>>().join(" + ")
}

fn higher(params: &Value) -> String {
    let names = list(params, |it| text(&it["name"]).to_owned());
    if names.is_empty() { names } else { format!("for<{names}> ") }
}

fn predicates(them: &Value) -> String {
    let each = list(them, |it| {
        let it = &it["bound_predicate"];
        format!("{}{}: {}", higher(&it["generic_params"]), ty(&it["type"]), bounds(&it["bounds"]))
    });
    if each.is_empty() { each } else { format!(" where {each}") }
}

fn ty(it: &Value) -> String {
    let Some((what, inner)) = it.as_object().and_then(|it| it.iter().next()) else { return "_".to_owned() };
    let mutable = if inner["is_mutable"] == true { "mut " } else { "" };
    match what.as_str() {
        "resolved_path" => path(inner),
        "generic" | "primitive" => text(inner).to_owned(),
        "tuple" => format!("({})", list(inner, ty)),
        "slice" => format!("[{}]", ty(inner)),
        "array" => format!("[{}; {}]", ty(&inner["type"]), text(&inner["len"])),
        "impl_trait" => format!("impl {}", bounds(inner)),
        "borrowed_ref" => {
            let lifetime = inner["lifetime"].as_str().map_or_else(String::new, |it| format!("{it} "));
            format!("&{lifetime}{mutable}{}", ty(&inner["type"]))
        }
        "raw_pointer" => {
            format!("*{}{}", if mutable.is_empty() { "const " } else { mutable }, ty(&inner["type"]))
        }
        "dyn_trait" => {
            let traits = inner["traits"].as_array().into_iter().flatten().map(|it| path(&it["trait"]));
            format!("dyn {}", traits.collect::<Vec<_>>().join(" + "))
        }
        "qualified_path" => format!("{}::{}", ty(&inner["self_type"]), text(&inner["name"])),
        what => panic!("a type of the kind {what}: add it to tests/repository/public_api/render.rs"),
    }
}
