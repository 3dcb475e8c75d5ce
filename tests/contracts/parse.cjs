// Parses a list of AsyncAPI documents from the standard input, with the parser that is installed in the
// directory of the first argument. Prints a list with the errors and the warnings of each document.
//
// The parser's bundle for browsers contains everything that the parser needs. So the lock file has no
// other package, and an installation takes seconds.
globalThis.self = globalThis.window = globalThis;
const { readFileSync } = require("node:fs");
const Parser = require(`${process.argv[2]}/node_modules/@asyncapi/parser/browser/index.js`);

const levels = ["error", "warning"];
const parser = new (Parser.default ?? Parser)();

async function complaints(text) {
  const { document, diagnostics } = await parser.parse(text);
  const lines = diagnostics
    .filter(({ severity }) => levels[severity])
    .map(({ severity, code, path, message }) => `${levels[severity]}: ${path.join(".")}: ${message} (${code})`);
  return document ? lines : [...lines, "error: this is no document"];
}

async function main() {
  const all = [];
  for (const text of JSON.parse(readFileSync(0, "utf8"))) all.push(await complaints(text));
  console.log(JSON.stringify(all));
}

main();
