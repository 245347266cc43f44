/**
 * Cowbell for the guest of vm.ts: Node as it runs here, the built package and what it depends on, as `files` for
 * `bootVm`. In the guest it is `/cowbell/bin/cowbell.cjs`, run by `node`.
 *
 * About 150 MB, copied into the guest's memory: such a guest needs `GUEST_MEMORY_MIB` and a few seconds more to
 * boot.
 */
import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT, run } from './process.ts';
import { VmUnavailable } from './vm-image.ts';

/** Enough for the files twice (while they are unpacked) and for Node to run. */
export const GUEST_MEMORY_MIB = 1536;

/** The command that runs `cowbell` in the guest; its arguments follow. */
export const GUEST_COWBELL = 'node /cowbell/bin/cowbell.cjs';

/** @throws {VmUnavailable} where Cowbell is not built. */
export async function guestCowbell(): Promise<Readonly<Record<string, string>>> {
  if (!existsSync(join(ROOT, 'dist'))) throw new VmUnavailable('missing dist, run `npm run build`');
  const node = realpathSync(process.execPath);
  const files: Record<string, string> = { '/usr/bin/node': node };
  for (const name of ['bin', 'dist', 'package.json']) files[join('/cowbell', name)] = join(ROOT, name);
  for (const path of productionPackages()) files[join('/cowbell', path)] = join(ROOT, path);
  for (const path of await librariesOf([node, ...Object.values(files).flatMap(addonsIn)])) files[path] = path;
  return files;
}

/** Paths of the installed packages that are not for development only, from the repository's root. */
function productionPackages(): string[] {
  const lock: unknown = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8'));
  const packages: unknown = typeof lock === 'object' && lock !== null && Reflect.get(lock, 'packages');
  if (typeof packages !== 'object' || packages === null)
    throw new Error('package-lock.json lists no packages');
  return Object.entries(packages)
    .filter(
      ([, entry]: [string, { readonly dev?: boolean; readonly devOptional?: boolean }]) =>
        entry.dev !== true && entry.devOptional !== true,
    )
    .map(([path]) => path)
    .filter((path) => path !== '' && existsSync(join(ROOT, path)));
}

/** Compiled modules in a package. */
function addonsIn(path: string): string[] {
  if (!statSync(path).isDirectory()) return [];
  const names = readdirSync(path, { recursive: true, encoding: 'utf8' });
  return names.filter((name) => name.endsWith('.node')).map((name) => join(path, name));
}

/** The shared libraries that programs and modules of this machine are linked with. */
export async function librariesOf(programs: readonly string[]): Promise<ReadonlySet<string>> {
  // Packages also bring modules for other C libraries, for which ldd fails; what it printed counts.
  const { stdout } = await run('ldd', programs);
  return new Set([...stdout.matchAll(/(\/\S+) \(0x/g)].map(([, path]) => path ?? ''));
}
