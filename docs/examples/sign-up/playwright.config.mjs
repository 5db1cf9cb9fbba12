import { defineConfig } from '@playwright/test';

export default defineConfig({
  testMatch: '*.e2e.mjs',
  // A browser of the system, as Debian's. Without this line it is the one of `npx playwright install chromium`.
  use: { launchOptions: { executablePath: '/usr/bin/chromium' } },
});
