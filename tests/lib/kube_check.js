// kube_check.js DOCS.json: checks Kubernetes objects (a JSON array) against the schemas that the npm
// package kubernetes-models carries, made from Kubernetes' own OpenAPI document. Two checks, since each
// sees what the other does not: its validators (patterns, formats, required) and TypeScript's types
// (a field that does not exist). Prints one fault a line; exit 1 when there is one.
const fs = require("fs"), path = require("path");
const root = path.join(process.cwd(), "node_modules");
const ts = require(path.join(root, "typescript"));
const docs = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const faults = [];

let source = "";
const names = [];
for (const [i, doc] of docs.entries()) {
	const name = `${doc.kind} ${doc.metadata && doc.metadata.name}`;
	const file = `kubernetes-models/${doc.apiVersion}/${doc.kind}`;
	let model;
	try {
		model = require(path.join(root, file + ".js"))[doc.kind];
	} catch {
		faults.push(`${name}: no schema for ${doc.apiVersion} ${doc.kind}`);
		continue;
	}
	try {
		new model(doc).validate();
	} catch (e) {
		faults.push(`${name}: ${e.message}`);
	}
	source += `import { I${doc.kind} as T${i} } from "${file}"; export const d${i}: T${i} = ${JSON.stringify(doc)};\n`;
	names.push(name);
}

const check = path.join(process.cwd(), `check-${process.pid}.ts`);
fs.writeFileSync(check, source);
const program = ts.createProgram([check], {
	noEmit: true, strict: true, skipLibCheck: true, types: [],
	module: ts.ModuleKind.Node16, moduleResolution: ts.ModuleResolutionKind.Node16, target: ts.ScriptTarget.ES2022,
});
for (const d of ts.getPreEmitDiagnostics(program)) {
	const line = d.file ? d.file.getLineAndCharacterOfPosition(d.start).line : 0;
	faults.push(`${names[line]}: ${ts.flattenDiagnosticMessageText(d.messageText, " ")}`);
}
fs.unlinkSync(check);
faults.forEach((f) => console.log(f));
process.exit(faults.length ? 1 : 0);
