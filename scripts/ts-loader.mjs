/** The hooks of `ts-hooks.mjs`; they run in a thread of their own. */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { threadId } from 'node:worker_threads';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const CACHE = join(ROOT, '.cache/ts');
const OPTIONS = {
  loader: 'ts',
  format: 'esm',
  target: 'node20.19',
  sourcemap: 'inline',
  sourcesContent: false,
  tsconfigRaw: { compilerOptions: { verbatimModuleSyntax: true, target: 'es2023' } },
};
const { version } = createRequire(import.meta.url)('esbuild/package.json');
const SALT = JSON.stringify([version, OPTIONS]);

export async function load(url, context, nextLoad) {
  if (!url.startsWith('file:') || !/\.ts(\?.*)?$/.test(url)) return nextLoad(url, context);
  const file = fileURLToPath(url.replace(/\?.*$/, ''));
  const source = readFileSync(file, 'utf8');
  return { format: 'module', shortCircuit: true, source: await stripped(file, source) };
}

/** A file of the cache ends with the hash of what it was made from. */
async function stripped(file, source) {
  const name = relative(ROOT, file);
  const kept = join(CACHE, `${name}.mjs`);
  const end = `//${createHash('sha256').update(SALT).update(source).digest('hex')}\n`;
  const found = name.startsWith('..') ? undefined : read(kept);
  if (found?.endsWith(end) === true) return found;
  const { transform } = await import('esbuild');
  const { code } = await transform(source, { ...OPTIONS, sourcefile: file });
  if (!name.startsWith('..')) write(kept, code + end);
  return code + end;
}

function read(path) {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** Several processes may do it at once. */
function write(path, text) {
  const part = `${path}.${process.pid}-${threadId}`;
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(part, text);
  renameSync(part, path);
}
