// openapi.json as a page.

const document_ = await (await fetch("openapi.json")).json();
const byTag = Map.groupBy
  ? Map.groupBy(operations(), ({ operation }) => operation.tags[0])
  : operations().reduce((map, one) => map.set(one.operation.tags[0], [...(map.get(one.operation.tags[0]) ?? []), one]), new Map());

for (const [tag, found] of byTag) {
  document.getElementById("operations").append(made("h2", tag), ...found.map(article));
}

function operations() {
  return Object.entries(document_.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));
}

function article({ path, method, operation }) {
  const whole = document.createElement("article"), title = document.createElement("h3");
  title.append(made("b", method), path);
  whole.append(title, made("p", operation.description ?? operation.summary));
  const asked = (operation.parameters ?? []).map(({ name, required, schema, description }) =>
    [name, `${typeOf(schema)}${required ? ", needed" : ""}`, [description, limitsOf(schema)].filter(Boolean).join(" ")]);
  if (operation.requestBody) asked.push(["body", Object.keys(operation.requestBody.content).join(", "), "The bytes of the photo."]);
  if (asked.length) whole.append(table("Asked with", asked));
  const answer = operation.responses["200"]?.content ?? {};
  const schema = resolved(answer["application/json"]?.schema);
  if (schema?.properties) whole.append(table("Answered with", fieldsOf(schema, "")));
  whole.append(made("pre", example(path, method, operation)));
  return whole;
}

function fieldsOf(schema, before) {
  return Object.entries(schema.properties).flatMap(([name, field]) => {
    const inner = resolved(field.items ?? field);
    const row = [before + name, typeOf(field), field.description ?? ""];
    return inner?.properties ? [row, ...fieldsOf(inner, `${before}${name}${field.items ? "[]" : ""}.`)] : [row];
  });
}

function example(path, method, operation) {
  const values = { sentence: "two dogs play in the snow", id: "holiday/beach.jpg" };
  const query = (operation.parameters ?? []).filter(({ required }) => required).map(({ name }) => `${name}=${encodeURIComponent(values[name] ?? "")}`);
  const url = `${new URL(path.slice(1), document.baseURI)}${query.length ? `?${query.join("&")}` : ""}`;
  return method === "POST" ? `curl --data-binary @query.jpg -H "Content-Type: image/jpeg" "${url}"` : `curl "${url}"`;
}

function resolved(schema) {
  return schema?.$ref ? document_.components.schemas[schema.$ref.split("/").at(-1)] : schema;
}

function typeOf(schema) {
  if (schema.anyOf) return typeOf(schema.anyOf[0]);
  if (schema.items) return `list of ${typeOf(schema.items)}`;
  return schema.$ref?.split("/").at(-1) ?? schema.format ?? schema.type;
}

function limitsOf(schema) {
  const { minimum, maximum, maxLength, default: otherwise } = schema;
  return [minimum !== undefined && `From ${minimum} to ${maximum}.`, maxLength && `At most ${maxLength} characters.`,
    otherwise !== undefined && otherwise !== "" && `${otherwise} if left out.`].filter(Boolean).join(" ");
}

function table(caption, rows) {
  const wide = Object.assign(document.createElement("div"), { className: "wide" }), whole = document.createElement("table");
  whole.append(made("caption", caption));
  for (const [head, ...cells] of rows) {
    const row = whole.insertRow(), name = made("th", head);
    name.scope = "row";
    row.append(name, ...cells.map((cell) => made("td", cell)));
  }
  wide.append(whole);
  return wide;
}

function made(name, words) {
  return Object.assign(document.createElement(name), { textContent: words });
}
