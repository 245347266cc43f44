/**
 * Goal: `cowbell/nbd` is a library by itself: a program outside of this repository that has nothing but the
 * published package type-checks against it in strict mode, runs, and serves a client that was not written
 * here; and every type that its interface mentions can be named.
 *
 * Method: the package as `npm pack` makes it, in a directory of its own, with all rooms and all dependencies
 * removed that the library does not need; the two examples of the room's README, taken from there, so that they stay true.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import ts from 'typescript';
import { must, ROOT, Running, temporaryDirectory } from './support/process.ts';
import { requireTools, skipOrFail } from './support/tools.ts';

/** What the library is made of. */
const ROOMS = ['base', 'device', 'nbd'];

/**
 * Mentioned by the interface and not exported: what `attachKernelDevice` takes from the system, which only
 * this project's tests replace.
 */
const INTERNAL = ['KernelWorld'];

const STRICT = {
  strict: true,
  // As `tsc --init` writes it. What the package declares is checked below, against this repository's packages.
  skipLibCheck: true,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  module: 'nodenext',
  target: 'es2023',
  types: ['node'],
};

/** A project with the package and Node's types installed. */
async function makeProject(t: Test): Promise<(name: string) => string> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const options = ['--offline', '--ignore-scripts', '--silent', '--pack-destination', directory];
  const packed = (await must('npm', ['pack', ...options], { cwd: ROOT })).trim();
  const installed = at('node_modules/cowbell');
  mkdirSync(installed, { recursive: true });
  await must('tar', ['-xzf', at(packed), '-C', installed, '--strip-components=1']);
  for (const room of readdirSync(join(installed, 'dist'))) {
    if (!ROOMS.includes(room)) rmSync(join(installed, 'dist', room), { recursive: true });
  }
  // Of what npm would install with it, all that it needs.
  mkdirSync(join(installed, 'node_modules'));
  symlinkSync(join(ROOT, 'node_modules/koffi'), join(installed, 'node_modules/koffi'));
  mkdirSync(at('node_modules/@types'));
  symlinkSync(join(ROOT, 'node_modules/@types/node'), at('node_modules/@types/node'));
  writeFileSync(at('package.json'), JSON.stringify({ type: 'module' }));
  writeFileSync(at('tsconfig.json'), JSON.stringify({ compilerOptions: STRICT, include: ['*.ts'] }));
  return at;
}

/** The first two pieces of TypeScript in the README: a server, and a client of it. */
function examples(socket: string): readonly string[] {
  const readme = readFileSync(join(ROOT, 'src/nbd/README.md'), 'utf8');
  const pieces = [...readme.matchAll(/^```ts\n([^]*?)^```$/gm)].slice(0, 2);
  return pieces.map(([, piece = '']) => piece.replaceAll('/tmp/ram.sock', socket));
}

t.test('the examples of the README are programs of their own', async (t) => {
  if (!requireTools(t, ['nbdinfo'])) return;
  if (!existsSync(join(ROOT, 'dist'))) {
    skipOrFail(t, 'missing dist, run `npm run build`');
    return;
  }
  const at = await makeProject(t);
  const [server = '', client = ''] = examples(at('ram.sock'));
  t.ok(server.trim().split('\n').length <= 22, 'about twenty lines');
  writeFileSync(at('server.ts'), `${server}\nconsole.log('serving');\n`);
  writeFileSync(at('client.ts'), client);
  await must(process.execPath, [join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', at('.')]);

  const serving = new Running('env', ['-u', 'NODE_OPTIONS', process.execPath, at('server.js')]);
  t.teardown(async () => {
    if (serving.ended === undefined) await serving.stop('SIGKILL');
  });
  await serving.waitForLine(/^serving$/);
  const uri = `nbd+unix:///ram?socket=${at('ram.sock')}`;
  t.equal((await must('nbdinfo', ['--size', uri])).trim(), String(64 * 1_048_576));
  await must('env', ['-u', 'NODE_OPTIONS', process.execPath, at('client.js')]);
  await must('nbdcopy', [uri, at('copy.raw')]);
  t.equal(readFileSync(at('copy.raw')).toString('latin1', 4095, 4097), 'x\0', 'what the client wrote');
});

t.test('every type that the interface mentions is exported', async (t) => {
  if (!existsSync(join(ROOT, 'dist'))) {
    skipOrFail(t, 'missing dist, run `npm run build`');
    return;
  }
  const entryPath = join(ROOT, 'dist/nbd/index.d.ts');
  const { ModuleKind, ScriptTarget, SymbolFlags } = ts;
  const program = ts.createProgram([entryPath], {
    strict: true,
    module: ModuleKind.NodeNext,
    target: ScriptTarget.ES2023,
    types: ['node'],
  });
  const checker = program.getTypeChecker();
  const entry = program.getSourceFile(entryPath);
  const entrySymbol = entry && checker.getSymbolAtLocation(entry);
  if (entrySymbol === undefined) throw new Error(`${entryPath} is no module`);
  const original = (symbol: ts.Symbol): ts.Symbol =>
    (symbol.flags & SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol);
  const exported = new Set(checker.getExportsOfModule(entrySymbol).map(original));
  const hidden = new Set<string>();
  const visit = (node: ts.Node): void => {
    const name = ts.isTypeReferenceNode(node)
      ? node.typeName
      : ts.isExpressionWithTypeArguments(node)
        ? node.expression
        : undefined;
    const found = name && checker.getSymbolAtLocation(name);
    const symbol = found && original(found);
    const isOurs = symbol?.declarations?.[0]?.getSourceFile().fileName.startsWith(join(ROOT, 'dist/'));
    const isParameter = symbol !== undefined && (symbol.flags & SymbolFlags.TypeParameter) !== 0;
    if (symbol !== undefined && isOurs === true && !isParameter && !exported.has(symbol))
      hidden.add(symbol.name);
    ts.forEachChild(node, visit);
  };
  for (const { declarations = [] } of exported) for (const declaration of declarations) visit(declaration);
  const wrong = ts
    .getPreEmitDiagnostics(program)
    .filter(({ file }) => file?.fileName.startsWith(join(ROOT, 'dist/')))
    .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, ' '));
  t.strictSame(wrong, []);
  t.ok(exported.size > 40, `${exported.size} names`);
  t.strictSame([...hidden].sort(), INTERNAL);
});
